# SPDX-License-Identifier: Apache-2.0
"""From a composed configuration to a compiled session."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from poptransformer.build import Build, use_build
from poptransformer.config import (
    GlobalArgs,
    InputsConfig,
    ModelConfig,
    PlanConfig,
    SessionConfig,
    TopLevel,
    check_keys,
    full_key,
)
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.ipu.device import Device, load_device
from poptransformer.utils import automatic
from poptransformer.utils.logging import runtime_severity, set_up_logging
from poptransformer.utils.targets import check_target, takes

GROUPS = ("global_args", "session", "model", "inputs", "plan")
DEVICE = "device"


@dataclasses.dataclass(frozen=True)
class CheckedConfig:
    """A configuration whose every key is known and whose every value is accepted.

    Attributes:
        top: the keys beside the groups.
        global_args: what holds for the whole build.
        session: `_target_` and its keyword arguments.
        model: `_target_` and its keyword arguments.
        inputs: keyword arguments of the model's `build_input_dict`.
        plan: what the planner looks for.
        device: the emulated IPU; None where none was asked for.
    """

    top: TopLevel
    global_args: GlobalArgs
    session: dict[str, Any]
    model: dict[str, Any]
    inputs: dict[str, Any]
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    device: Device | None = None


def prepare_model_session(config: DictConfig | Mapping[str, Any]) -> tuple[Any, Any]:
    """Builds the configured model and compiles it.

    Args:
        config: the composed configuration.

    Returns:
        The session, ready to `run` or `stream`, and the model, which makes its inputs and reads its outputs.

    Raises:
        ConfigError: a key is unknown, or a value is not accepted.
        PopTransformerError: the model cannot be built from its checkpoint.
    """
    checked = check_config(config)
    set_up_logging(checked.top.log_level, checked.top.popart_log_level)
    if checked.session.get("distributed") == "mpi":
        from poptransformer.parallel.mpi import quieten_others

        quieten_others()
    checked = automatic.resolve(checked)
    with use_build(Build(**dataclasses.asdict(checked.global_args))):
        model = make_model(checked)
        session = _instantiate(checked.session)
        session.compile(model)
    if checked.device is not None and hasattr(session, "notes"):
        session.notes.append(lambda: automatic.short_report(checked, model))
    return session, model


def make_model(checked: CheckedConfig) -> Any:
    """Makes the configured model; its graph is still to be built."""
    return _instantiate(checked.model)


def check_config(config: DictConfig | Mapping[str, Any]) -> CheckedConfig:
    """Checks a composed configuration; keys that it leaves out have their defaults.

    Raises:
        ConfigError: names the key, what was expected, what was found and what to do.
    """
    values = _plain(config)
    check_keys("", values, [*TopLevel.names(), *GROUPS, DEVICE])
    groups = {name: _group(name, values) for name in GROUPS}
    top = TopLevel.from_mapping({key: value for key, value in values.items() if key not in (*GROUPS, DEVICE)})
    global_args = GlobalArgs.from_mapping(groups["global_args"])
    for section in (SessionConfig, ModelConfig, InputsConfig):
        section.check(groups[section.NAME])
    # After the values, as importing the classes takes a while.
    check_target("model", groups["model"])
    session = dict(groups["session"])
    if takes(check_target("session", session), "log_severity"):
        session.setdefault("log_severity", runtime_severity(top.popart_log_level))
    plan, device = PlanConfig.from_mapping(groups["plan"]), _device(values.get(DEVICE))
    model, inputs = _completed(groups["model"]), groups["inputs"]
    return CheckedConfig(top, global_args, session, model, inputs, plan, device)


def _device(content: Any) -> Device | None:
    """The device of a configuration: a file's content, or the name of one that comes with the package."""
    if content is None or isinstance(content, str):
        return None if content is None else load_device(content)
    return Device.from_mapping(content, f"device {content.get('name', '')}".strip())


def _plain(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration as plain dictionaries and lists, interpolations resolved."""
    try:
        node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        # The lines after the first name OmegaConf's types.
        raise ConfigError(f"{error.full_key or 'The configuration'}: {str(error).splitlines()[0]}") from error
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _group(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    group = values.get(name)
    if group is None:
        group = {}
    if not isinstance(group, dict):
        raise ConfigError(
            f"{name} must be a group of keys, found {group!r} ({type(group).__name__}). "
            f"Set one of its keys, as in {full_key(name, 'key')}=value."
        )
    return {str(key): value for key, value in group.items()}


def _completed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in what a model constructor should not have to guess."""
    completed = dict(model)
    if "topk" in model and model["topk"] is None:
        greedy = {"temperature": 1, "top_p": 1, "min_p": 0}
        completed["topk"] = 1 if all(model.get(key, value) == value for key, value in greedy.items()) else 0
    if isinstance(model.get("stop"), str):
        completed["stop"] = [model["stop"]]
    return completed


def _instantiate(group: Mapping[str, Any]) -> Any:
    """Makes the object of a group's `_target_`; its own errors come out as they are."""
    try:
        return instantiate(dict(group), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, PopTransformerError):
            raise error.__cause__ from None
        raise
