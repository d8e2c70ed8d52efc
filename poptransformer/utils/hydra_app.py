# SPDX-License-Identifier: Apache-2.0
"""`hydra_main`: Hydra's own `main`, with errors in one sentence."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig

from poptransformer.errors import PopTransformerError
from poptransformer.utils import base_config
from poptransformer.utils.config_errors import describe
from poptransformer.utils.dry_run import as_overrides, dry_run

FULL_ERROR = "HYDRA_FULL_ERROR"

# What shells report for a command that ended by Ctrl-C, or because its reader had gone (`| head`).
INTERRUPTED, READER_GONE = 130, 141

Task = Callable[[DictConfig], Any]
Command = Callable[[], Any]


def hydra_main(config_path: str | None = "conf", config_name: str = "sharding") -> Callable[[Task], Command]:
    """Turns a function of a configuration into a command, as `hydra.main` does.

    Hydra's options (`--cfg job`, `--multirun`, `--config-name`, `--config-dir`, `--help`, completion) work as
    ever. With `--validate_only` or `--compile_only` the function is not called: the model is checked or compiled.
    A mistake in the configuration, or in what it names, ends the command with one sentence on stderr
    and exit status 1; with HYDRA_FULL_ERROR=1 in the environment, with the complete stack trace.

    Args:
        config_path: folder of the YAML files, relative to the file that defines the function; None leaves it to
            `--config-dir`.
        config_name: the YAML file to begin with, without its ending.
    """
    base_config.register()
    show_trace = os.environ.get(FULL_ERROR) == "1"

    def decorate(task: Task) -> Command:
        @functools.wraps(task)
        def job(config: DictConfig) -> Any:
            try:
                return None if dry_run(config) else task(config)
            except BrokenPipeError:
                _leave_quietly()
            except PopTransformerError as error:
                # Hydra says which of several jobs failed; a single one needs no such line.
                if show_trace or HydraConfig.get().mode != RunMode.RUN:
                    raise
                _fail(str(error))

        command = hydra.main(config_path=config_path, config_name=config_name, version_base="1.3")(job)

        @functools.wraps(task)
        def main() -> Any:
            sys.argv[1:] = as_overrides(sys.argv[1:])  # Hydra knows no flags of an application
            return command() if show_trace else _reporting(command, task)

        return main

    return decorate


def _reporting(command: Command, task: Task) -> Any:
    """Runs a Hydra command, and prints its errors in our words."""
    try:
        # With this set, Hydra raises an error where it would print it and leave.
        with env_override({FULL_ERROR: "1"}):
            return command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = describe(error)
        if message is not None:
            _fail(message)
        _print_trace(error, task)
        sys.exit(1)


def _fail(message: str) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    mpi = sys.modules.get("poptransformer.parallel.mpi")  # loaded only where ranks are processes
    prefix = mpi.error_prefix() if mpi is not None else ""
    sys.stderr.write(f"error: {prefix}{message}\n")
    sys.exit(1)


def _leave_quietly() -> NoReturn:
    _drop_output()
    sys.exit(READER_GONE)


def _drop_output() -> None:
    """Python flushes stdout on its way out; what is left must go somewhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_trace(error: Exception, task: Task) -> None:
    """Prints the stack from the user's function on, without Hydra's frames above it."""
    code = getattr(task, "__code__", None)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace or error.__traceback__)
    sys.stderr.write(f"Set the environment variable {FULL_ERROR}=1 for a complete stack trace.\n")
