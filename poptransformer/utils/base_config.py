# SPDX-License-Identifier: Apache-2.0
"""The base configuration that an example's YAML begins with: `defaults: [poptransformer, ...]`.

It holds every key with its default, so that each can be set on the command line, and Hydra's own settings for
a command that prints text: no output folder and no log file for a single run, log lines to stderr. Importing
this module registers it with Hydra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from poptransformer.config import base_config
from poptransformer.errors import ConfigError
from poptransformer.utils.device_source import DeviceSearchPath, DeviceSource

NAME = "poptransformer"


def _log_lines(level: str) -> dict[str, Any]:
    """Python's logging configuration: everything from `level` on to stderr, as plain lines."""
    return {
        "version": 1,
        "handlers": {"stderr": {"class": "poptransformer.utils.logging.StderrHandler"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "disable_existing_loggers": False,
    }


def register() -> None:
    """Adds the base configuration, its logging, the devices and the resolver `example_dir` to Hydra's."""
    store = ConfigStore.instance()
    for group in ("hydra/job_logging", "hydra/hydra_logging"):
        store.store(group=group, name=NAME, node=_log_lines("INFO"), provider=NAME)
    hydra_settings = {"run": {"dir": "."}, "output_subdir": None}
    for plugin in (DeviceSource, DeviceSearchPath):
        Plugins.instance().register(plugin)
    no_device: dict[str, str | None] = {"device": None}
    defaults = [no_device, {"override hydra/job_logging": NAME}, {"override hydra/hydra_logging": NAME}, "_self_"]
    node = {"defaults": defaults, "hydra": hydra_settings, **base_config()}
    store.store(name=NAME, node=node, package="_global_", provider=NAME)
    OmegaConf.register_new_resolver("example_dir", example_dir, replace=True)


def example_dir(name: str) -> str:
    """Returns the path of a file beside `inference.py`, whatever the working directory is.

    In YAML: `${example_dir:tiny}`. A command without a folder of its own takes that of `--config-dir`.

    Raises:
        ConfigError: no Hydra application is running.
    """
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():
        sources = [source for source in hydra.config_loader().get_sources() if source.scheme() == "file"]
        for provider in ("main", "command-line"):
            for source in sources:
                if source.provider == provider:
                    return str(Path(source.path).resolve().parent / name)
    raise ConfigError(
        f"${{example_dir:{name}}} is in the folder above a Hydra application's conf, but none is running. "
        "Write the path itself."
    )


register()
