# SPDX-License-Identifier: Apache-2.0
"""A trained model's graph: validated without weights, or compiled with them. Nothing of it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poptransformer.build import Build
from poptransformer.checkpoint import LazyTensor, StateDict
from poptransformer.errors import ConfigError
from poptransformer.ipu.checks import check_device
from poptransformer.ipu.device import load_device
from poptransformer.nn.convert import as_state_dict
from poptransformer.planning.program import program_report
from poptransformer.program import Program
from poptransformer.program_graph import build_program
from poptransformer.recipe import QuantizationConfig, Recipe
from poptransformer.training.base_model import PyTorchBaseModel
from poptransformer.training.checkpoints import checkpoints_of, load_weights
from poptransformer.training.params import Params
from poptransformer.validation import Validation, check_stages, validate
from poptransformer.validation_memory import host_memory

logger = logging.getLogger(__name__)

MakeModel = Callable[[], PyTorchBaseModel]


def validate_only(params: Params, make_model: MakeModel) -> Validation:
    """Builds the graph from shapes alone, and checks it; prints what was found.

    Args:
        params: the completed params file; of `runconfig`, `precision`, `graph_sizes`, `num_replicas`, `layer_per_ipu`
            and `device` count.
        make_model: makes the model; its parameters get no memory.

    Raises:
        PopTransformerError: the graph is not valid, a node has no kernel, or it does not fit on the device.
    """
    began = time.monotonic()
    with torch.device("meta"):
        model = make_model()
    config, name = params["runconfig"], type(model).__name__
    sizes = dict(config["graph_sizes"])
    build = Build(state_dict=shapes_of(model.model), **_options(config))
    built = build_program(model.build_graph, build, name)
    layers = build.layer_per_ipu or ()
    if len(layers) > 1:
        check_stages(built.model, layers, {}, str(built.model.graph.inputs[0].name))
    validation = validate(built.model, build.recipe, sizes)
    print(validation)
    print(host_memory(validation.weight_bytes + validation.activation_bytes, 0, build.num_replicas, layers))
    if config["device"] is not None:
        print("\n".join(program_report(model.build_graph, build, load_device(config["device"]), sizes)))
    logger.info("validated in %.1f s; no weight was read", time.monotonic() - began)
    return validation


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Precision, replicas and stages of a run's graph; an emulated IPU computes with 8-bit floats of its own.

    Raises:
        ConfigError: the device is unknown, or has no 8-bit floats and is asked for some.
    """
    layers, formats = config["layer_per_ipu"], {}
    if config["device"] is not None:
        formats = {"fp8_convention": "ipu"}
        recipe = Recipe.of(config["precision"], QuantizationConfig())
        check_device(load_device(config["device"]), [choice.precision for _, choice in recipe.rules])
    return {
        "precision": config["precision"],
        "quantization": formats,
        "model_type": "tp" if config["num_replicas"] > 1 else "shard",
        "num_replicas": config["num_replicas"],
        "layer_per_ipu": None if layers is None else tuple(layers),
    }


def shapes_of(module: torch.nn.Module) -> StateDict:
    """Returns a state dict of a module's shapes: zeros that take no memory."""

    def zeros(tensor: torch.Tensor) -> LazyTensor:
        dtype = np.dtype(np.float32 if tensor.is_floating_point() else np.int64)
        return LazyTensor(lambda: np.broadcast_to(dtype.type(0), tuple(tensor.shape)), tuple(tensor.shape), dtype)

    tensors = {name: zeros(tensor) for name, tensor in module.state_dict().items()}
    return StateDict(tensors, f"the weights of {type(module).__name__}")


def compile_only(params: Params, make_model: MakeModel) -> Path:
    """Compiles the graph with the weights of a checkpoint, makes its session, and saves both.

    Args:
        params: the completed params file; `runconfig.checkpoint_path` or the last of `runconfig.model_dir` is compiled,
            in `runconfig.precision`, for `runconfig.num_replicas` and `runconfig.layer_per_ipu`, to
            `runconfig.compile_dir` or `model_dir/compiled`.
        make_model: makes the model.

    Raises:
        ConfigError: there is no checkpoint.
    """
    config: Any = params["runconfig"]
    model_dir = Path(config["model_dir"])
    saved = checkpoints_of(model_dir)
    if not config["checkpoint_path"] and not saved:
        raise ConfigError(f"{model_dir} has no checkpoint to compile; train first or set --checkpoint_path.")
    checkpoint = Path(config["checkpoint_path"]).expanduser() if config["checkpoint_path"] else saved[-1]
    model = make_model()
    load_weights(checkpoint, model.model)
    program = Program.compile(
        model.build_graph,
        as_state_dict(model.model),
        threads=config["threads"],
        **_options(config),
    )
    program.make_ready()
    folder = Path(config["compile_dir"] or model_dir / "compiled")
    program.save(folder, source=str(checkpoint), model=type(model).__name__, precision=config["precision"])
    print(f"compiled {checkpoint} to {folder} ({program.report.summary})")
    return folder
