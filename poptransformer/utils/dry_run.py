# SPDX-License-Identifier: Apache-2.0
"""`--validate_only` and `--compile_only` of the Hydra applications: as far as a model gets without running."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from poptransformer.build import Build, use_build
from poptransformer.checkpoint.blank_weights import BlankStateDict
from poptransformer.checkpoint.random_weights import RandomStateDict
from poptransformer.errors import ConfigError
from poptransformer.state import BATCH, CHOSEN, SLOTS, TOKENS
from poptransformer.utils.logging import set_up_logging
from poptransformer.utils.prepare import CheckedConfig, check_config, make_model, prepare_model_session

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel

FLAGS = ("validate_only", "compile_only")


def as_overrides(arguments: list[str]) -> list[str]:
    """Writes the flags as Hydra's overrides: `--validate_only` is `validate_only=true`."""
    flags = {f"--{name}": f"{name}=true" for name in FLAGS}
    return [flags.get(argument, argument) for argument in arguments]


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
    if checked.top.validate_only:
        _validate(checked)
    else:
        _compile(config, checked)
    return True


def _validate(checked: CheckedConfig) -> None:
    """Builds the step graph and checks it; weights stay where they are, their shapes are enough."""
    import onnx_ir as ir

    from poptransformer.graph import IR_VERSION
    from poptransformer.runtime.compiled import state_bytes
    from poptransformer.validation import validate

    set_up_logging(checked.top.log_level, checked.top.popart_log_level)
    build = Build(**dataclasses.asdict(checked.global_args))
    with use_build(build):
        model: HFModel = make_model(checked)
        if not model.is_built:
            weights = model.checkpoint.state_dict
            if isinstance(weights, RandomStateDict):  # those of files are read when they are used, and here none is
                model.checkpoint.state_dict = BlankStateDict(np.dtype(np.float32), weights.source)
            model.build_graph()
    sizes = {BATCH: build.batch_size, TOKENS: model.max_length, SLOTS: model.max_length, CHOSEN: 1}
    program = ir.Model(model.graph.ir_graph, ir_version=IR_VERSION)
    print(validate(program, model.build.recipe, sizes))
    print(f"states: {state_bytes(model, sizes) / 2**20:.2f} MiB from step to step")


def _compile(config: DictConfig | Mapping[str, Any], checked: CheckedConfig) -> None:
    """Quantizes and compiles the model, lets onnxruntime accept it, and saves it; nothing is generated."""
    if checked.top.compile_dir is None:
        raise ConfigError("compile_only needs a folder for the compiled model: compile_dir=FOLDER")
    session, model = prepare_model_session(config)
    session.engine.runtime.make_ready(beams=model.sampling["num_beams"] > 1)
    print(f"compiled to {session.save(checked.top.compile_dir)}")
