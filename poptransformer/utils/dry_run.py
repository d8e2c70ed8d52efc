# SPDX-License-Identifier: Apache-2.0
"""`--validate_only` and `--compile_only` of the Hydra applications: as far as a model gets without running."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from poptransformer.build import Build, use_build
from poptransformer.checkpoint.blank_weights import BlankStateDict, blank_checkpoint
from poptransformer.checkpoint.random_weights import RandomStateDict
from poptransformer.errors import ConfigError
from poptransformer.state import BATCH, CHOSEN, SLOTS, TOKENS
from poptransformer.utils import automatic
from poptransformer.utils.logging import set_up_logging
from poptransformer.utils.prepare import CheckedConfig, check_config, make_model, prepare_model_session

if TYPE_CHECKING:
    from poptransformer.checkpoint import Checkpoint
    from poptransformer.models.base_model import HFModel

FLAGS = ("validate_only", "compile_only")
# Options of Hydra whose value is the next argument.
_WITH_VALUE = frozenset(
    ["--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p", "--experimental-rerun"]
)


def as_overrides(arguments: list[str]) -> list[str]:
    """Writes the flags as Hydra's overrides, `--validate_only` as `validate_only=true`, and puts overrides last.

    Hydra wants all overrides together; here options may stand between them.
    """
    flags = {f"--{name}": f"{name}=true" for name in FLAGS}
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_override = not argument.startswith("-") and ("=" in argument or argument.startswith("~"))
        if argument in flags or (is_override and before not in _WITH_VALUE):
            overrides.append(flags.get(argument, argument))
        else:
            options.append(argument)
    return options + overrides


def dry_run(config: DictConfig) -> bool:
    """Validates or compiles the configured model where the configuration says so; returns whether it did.

    Raises:
        ConfigError: both are asked for, or a value is not accepted.
        PopTransformerError: the model cannot be built, or its graph is not valid.
    """
    asked = [name for name in FLAGS if config.get(name)]
    if not asked:
        return False
    checked = check_config(config)
    if len(asked) > 1:
        raise ConfigError("validate_only and compile_only exclude each other; set one of them.")
    if checked.session.get("distributed") == "mpi":
        raise ConfigError(
            f"{asked[0]} is done by one process for all ranks; leave out mpiexec and set session.distributed=threads."
        )
    if checked.top.validate_only:
        _validate(checked)
    else:
        _compile(config, checked)
    return True


def _validate(checked: CheckedConfig) -> None:
    """Builds the step graph of one replica and checks it; weights stay where they are, their shapes are enough."""
    import onnx_ir as ir

    from poptransformer.graph import IR_VERSION
    from poptransformer.runtime.compiled import state_bytes
    from poptransformer.validation import check_stages, validate
    from poptransformer.validation_memory import host_memory

    set_up_logging(checked.top.log_level, checked.top.popart_log_level)
    checked = automatic.resolve(checked)
    build = Build(**dataclasses.asdict(checked.global_args))
    with use_build(build):
        model: HFModel = make_model(checked)
        if not model.is_built:
            weights = _checkpoint_of(model).state_dict
            if isinstance(weights, RandomStateDict):  # those of files are read when they are used, and here none is
                model.checkpoint.state_dict = BlankStateDict(np.dtype(np.float32), weights.source)
            model.build_graph()
    sizes = {BATCH: build.batch_size, TOKENS: model.max_length, SLOTS: model.max_length, CHOSEN: 1}
    program = ir.Model(model.graph.ir_graph, ir_version=IR_VERSION)
    layers = model.build.layer_per_ipu or ()
    if len(layers) > 1:
        check_stages(program, layers, {state.past: state.present for state in model.states}, "lengths")
    found, states = validate(program, model.build.recipe, sizes), state_bytes(model, sizes)
    print(found)
    print(f"states: {states / 2**20:.2f} MiB from step to step")
    print(host_memory(found.weight_bytes + found.activation_bytes, states, build.num_replicas, layers))
    if checked.device is not None:
        _validate_on_device(checked)


def _checkpoint_of(model: HFModel) -> Checkpoint:
    """The model's checkpoint; blank weights where it is not here, but its configuration ships with the package."""
    from poptransformer.checkpoint.errors import CheckpointNotFoundError
    from poptransformer.planning import find_config, shipped_configs

    try:
        return model.checkpoint
    except CheckpointNotFoundError:
        if model.hf_model_name not in shipped_configs():
            raise
        model.checkpoint = blank_checkpoint(find_config(model.hf_model_name))
        return model.checkpoint


def _validate_on_device(checked: CheckedConfig) -> None:
    """Says what the emulated device would need.

    Raises:
        ConfigError: the model does not fit; says where, and what would help.
    """
    from poptransformer.ipu.checks import problems
    from poptransformer.ipu.explain import short_form
    from poptransformer.planning import model_of, score_config

    model = model_of(checked)
    plan = score_config(checked, model)
    print("\n".join(short_form(plan, model.graph)))
    if found := problems(plan, model.graph):
        raise ConfigError(f"The model does not fit on {plan.device.name}: {found[0]}")


def _compile(config: DictConfig | Mapping[str, Any], checked: CheckedConfig) -> None:
    """Quantizes and compiles the model, lets onnxruntime accept it, and saves it; nothing is generated."""
    if checked.top.compile_dir is None:
        raise ConfigError("compile_only needs a folder for the compiled model: compile_dir=FOLDER")
    session, model = prepare_model_session(config)
    session.engine.runtime.make_ready(beams=model.sampling["num_beams"] > 1)
    print(f"compiled to {session.save(checked.top.compile_dir)}")
