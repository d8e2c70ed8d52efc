# SPDX-License-Identifier: Apache-2.0
"""Params files: read, checked by what is used of them, written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from poptransformer.checkpoint.files import write_text
from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.rules import COUNTS, FLAG, NOT_NEGATIVE, TEXT, Rule, choice, integer, or_null

MODES = ("train", "eval", "train_and_eval", "eval_all")
SECTIONS = ("train_input", "eval_input", "model", "optimizer", "runconfig")

# Keys of the section `runconfig`: default and rule.
RUNCONFIG: dict[str, tuple[Any, Rule]] = {
    "autoload_last_checkpoint": (True, FLAG),
    "checkpoint_path": (None, or_null(TEXT)),
    "checkpoint_steps": (0, integer(0)),
    "compile_dir": (None, or_null(TEXT)),
    "device": (None, or_null(TEXT)),
    "eval_frequency": (0, integer(0)),
    "eval_steps": (None, or_null(integer(1))),
    "graph_sizes": ({}, Rule("a mapping from dimensions to sizes", lambda x: isinstance(x, Mapping), "{batch: 8}")),
    "is_pretrained_checkpoint": (False, FLAG),
    "keep_checkpoint_max": (5, integer(0)),
    "layer_per_ipu": (None, or_null(COUNTS)),
    "log_steps": (100, integer(1)),
    "logging": ("INFO", choice("debug", "info", "warning", "error")),
    "max_steps": (None, or_null(integer(0))),
    "mode": (None, or_null(choice(*MODES))),  # set by the command, and so found in the files that it writes
    "model_dir": ("./model_dir", TEXT),
    "num_epochs": (None, or_null(integer(1))),
    "num_replicas": (1, integer(1)),
    "precision": ("fp32", Rule("a precision or a recipe", lambda x: isinstance(x, (str, Mapping)), "int8")),
    "seed": (1, integer(0)),
    "steps": (None, or_null(integer(1))),
    "threads": (None, or_null(integer(1))),
}
# Other names for them, in the seeds' files.
_OTHER_NAMES = {"checkpoints_steps": "checkpoint_steps", "save_checkpoints_steps": "checkpoint_steps"}
_OTHER_NAMES |= {"log_step_count_steps": "log_steps", "tf_random_seed": "seed"}
OPTIMIZER_RULES = {
    "max_gradient_norm": or_null(NOT_NEGATIVE),
    "max_gradient_value": or_null(NOT_NEGATIVE),
    "loss_scaling_factor": Rule(
        "`dynamic` or a number", lambda x: x == "dynamic" or isinstance(x, (int, float)), "dynamic"
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML's own rules take `1e-4` for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class Params(dict[str, Any]):
    """A mapping of a params file that knows which of its keys have been read.

    A key that a model never reads is a misspelt one, and one that it reads in vain is missing; both errors name what
    is nearest. Inner mappings are `Params` too; a copy shares the record with its original.
    """

    def __init__(self, values: Mapping[Any, Any], name: str = "", read: set[str] | None = None) -> None:
        inner = {str(k): Params(v, f"{name}.{k}".lstrip(".")) if type(v) is dict else v for k, v in values.items()}
        super().__init__(inner)
        self.name = name
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __missing__(self, key: str) -> Any:
        raise ConfigError(
            f"The params file has no {self.name}.{key}. {did_you_mean(key, list(dict.keys(self)))}".strip()
        )

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().__iter__())
        return super().__iter__()

    def keys(self) -> Any:
        """All keys; they count as read."""
        return list(iter(self))

    def items(self) -> Any:
        """All items; they count as read."""
        return [(key, self[key]) for key in self]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        self.read.add(key)
        return super().get(key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Sets a key that is not there; a default is known, and so counts as read."""
        self.read.add(key)
        return super().setdefault(key, Params(default, f"{self.name}.{key}") if type(default) is dict else default)

    def pop(self, key: str, *default: Any) -> Any:
        """Takes a key out."""
        self.read.add(key)
        return super().pop(key, *default) if default or dict.__contains__(self, key) else self.__missing__(key)

    def copy(self) -> Params:
        """Returns a copy that shares the record of what has been read."""
        return Params(dict(dict.items(self)), self.name, self.read)

    def check_all_read(self) -> None:
        """Raises `Unknown key` for one that nothing has read."""
        for key in list(super().__iter__()):
            if key not in self.read:
                raise ConfigError(f"Unknown key {self.name}.{key}. {did_you_mean(key, self.read)}")
        for value in dict.values(self):
            if isinstance(value, Params) and value.read:
                value.check_all_read()

    def plain(self) -> dict[str, Any]:
        """Returns ordinary dictionaries, for YAML; functions by their names."""
        return {key: _plain(value) for key, value in dict.items(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Params):
        return value.plain()
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value


def get_params(
    params_file: str | Path, mode: str | None = None, set_defaults: Callable[[dict[str, Any]], Any] | None = None
) -> Params:
    """Reads a params file, and lets `set_defaults` complete it.

    Args:
        params_file: YAML with the sections `train_input`, `eval_input`, `model`, `optimizer` and `runconfig`.
        mode: one of `MODES`; set as `runconfig.mode`.
        set_defaults: `default_params_fn` of `run`; may return the params or change them in place.

    Raises:
        ConfigError: the file is missing or no such file, or has an unknown section or key.
    """
    path = Path(params_file).expanduser()
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"Cannot read the params file {path}: {error.strerror}. Check --params.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(values.get(name, {}), dict) for name in SECTIONS):
        raise ConfigError(f"{path} must hold mappings, the sections {', '.join(SECTIONS)}.")
    for name in values:
        if name not in SECTIONS:
            raise ConfigError(f"{path} has an unknown section {name}. {did_you_mean(str(name), SECTIONS)}")
    params = Params({name: values.get(name, {}) for name in SECTIONS})
    if set_defaults is not None:
        params = set_defaults(params) or params
    _complete_runconfig(params["runconfig"])
    _check_optimizer(params["optimizer"])
    if mode is not None:
        params["runconfig"]["mode"] = mode
    return params


def _complete_runconfig(runconfig: Params) -> None:
    for old, new in _OTHER_NAMES.items():
        if dict.__contains__(runconfig, old):
            runconfig[new] = runconfig.pop(old)
    for key, value in runconfig.items():
        if key not in RUNCONFIG:
            raise ConfigError(f"Unknown key runconfig.{key}. {did_you_mean(key, [*RUNCONFIG, *_OTHER_NAMES])}")
        RUNCONFIG[key][1].check(f"runconfig.{key}", value)
    for key, (default, _) in RUNCONFIG.items():
        runconfig.setdefault(key, default)


def _check_optimizer(optimizer: Params) -> None:
    from poptransformer.training.optimizers import optimizer_arguments
    from poptransformer.training.schedules import create_schedule

    optimizer.setdefault("optimizer_type", "AdamW")
    optimizer_arguments(optimizer)
    create_schedule(optimizer.setdefault("learning_rate", 1e-4))
    for key, rule in OPTIMIZER_RULES.items():
        if key in optimizer:
            rule.check(f"optimizer.{key}", optimizer[key])


def write_params(params: Params, model_dir: Path, mode: str) -> Path:
    """Writes the completed params to `model_dir/<mode>/params_<mode>.yaml`.

    Raises:
        ConfigError: the folder cannot be made.
    """
    folder = model_dir / mode
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Cannot write to {folder}: {error.strerror}. Choose another --model_dir.") from error
    path = folder / f"params_{mode}.yaml"
    write_text(path, yaml.safe_dump(params.plain(), sort_keys=False))
    return path
