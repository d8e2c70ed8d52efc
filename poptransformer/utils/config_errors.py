# SPDX-License-Identifier: Apache-2.0
"""Hydra's errors about a configuration, in one sentence each."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.errors import (
    CompactHydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from poptransformer.config import is_private
from poptransformer.errors import ConfigError, PopTransformerError, did_you_mean
from poptransformer.utils.targets import accepted_keys, find_target

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_QUOTING = "A text needs quotes for the shell and for Hydra: 'inputs.input_string_list=[\"Well, what now?\"]'"


def describe(error: BaseException) -> str | None:
    """Returns an error as a message for the user; None for one that is no fault of the configuration."""
    if isinstance(error, PopTransformerError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        what = f"Writing {error.filename}" if error.filename else "Writing"
        return f"{what} failed: {error.strerror}. Free some disk space, or write to another place."
    if isinstance(error, YAMLError):
        return _invalid_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        return _no_text(error)
    if not isinstance(error, CompactHydraException):
        return None
    for cause in _chain(error):
        if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
            return _unknown_key(str(cause.full_key), str(cause.key), cause.parent_node)
    if isinstance(error, OverrideParseException):
        return f"Hydra cannot read {error.override}\n{error.message}\n{_QUOTING}"
    lines = [str(error)]
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(str(error.__cause__))
    if isinstance(error, InstantiationException):
        lines.append("Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.")
    return "\n".join(line for line in lines if line)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing_config(error: MissingConfigException) -> str:
    """A group option (`model=gpt5`) or a whole file (`--config-name=shard`) that is not there."""
    missing = str(error.missing_cfg_file)
    if error.options is not None:
        group, _, name = missing.rpartition("/")
        return f"{group} has no option {name}. {_options(name, error.options)}"
    folders = [Path(path) for path in re.findall(r"path=file://(.+)", str(error))]
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    if not folders:
        return f"There is no configuration {missing}: no folder was given. Set --config-dir=FOLDER."
    if not names:
        return (
            f"There is no configuration {missing}, nor any other, in {', '.join(map(str, folders))}. Set --config-dir."
        )
    where = ", ".join(str(folder) for folder in folders)
    return f"There is no configuration {missing} in {where}. {_options(missing, names)}"


def _invalid_yaml(error: YAMLError) -> str:
    """A file that YAML cannot read, or that asks for Python objects."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return f"The configuration is no valid YAML: {' '.join(str(error).split())}. Correct the file."
    problem = " ".join(str(part) for part in (error.problem, error.context) if part)
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {problem}. Correct the file."


def _no_text(error: UnicodeDecodeError) -> str | None:
    """A file of the configuration in another encoding; None where something else was read."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "hydra._internal.core_plugins.file_config_source":
            path = frame.f_locals.get("full_path", "A file of the configuration")
            return f"{path} must be YAML in UTF-8, found byte {error.object[error.start]:#x} at {error.start}."
    return None


def _options(name: str, options: Sequence[str]) -> str:
    hint = did_you_mean(name, options)
    return hint if hint.startswith("Options") else f"{hint} Options: {', '.join(sorted(options))}."


def _unknown_key(full: str, key: str, parent: object) -> str:
    """A key on the command line that no file of the configuration has."""
    group = full.rpartition(".")[0]
    node = parent if isinstance(parent, DictConfig) and parent else DictConfig({})
    known = [str(name) for name in node if name != "hydra" and not is_private(name)]
    target = node.get("_target_")
    if group in ("model", "session"):
        try:
            names, takes_any = accepted_keys(find_target(f"{group}._target_", target))
        except (ConfigError, ImportError):
            names, takes_any = [], False
        if key in names or takes_any:
            return f"{full} is a key of {target}, but not in the configuration: write +{full}=VALUE."
        known = sorted({*known, *names})
    if group == "inputs" and not known:
        return f"{full} is not in the configuration. Write +{full}=VALUE for an input that the model reads."
    return f"Unknown key {full}. {did_you_mean(key, known)}"
