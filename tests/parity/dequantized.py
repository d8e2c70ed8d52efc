# SPDX-License-Identifier: Apache-2.0
"""PyTorch models with the weights that a quantized engine has, and its rounding of activations."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers.pytorch_utils import Conv1D

import poptransformer
from poptransformer.engine import Engine
from poptransformer.program import Program
from poptransformer.quantization import FORMATS, PackedWeight
from poptransformer.quantization_report import QuantizationReport
from poptransformer.runtime import SessionSettings
from tests.parity.conftest import scaled
from tests.parity.variants import VARIANTS

MAKERS: dict[str, Callable[[], Any]] = {variant.name: variant.make for variant in VARIANTS}
MODELS = ["gpt2", "gpt2-untied", "llama-gqa", "llama-biases-tied", "rwkv-rescaled"]
# Patterns of recipes, where RWKV's layers go by other names.
_RWKV_NAMES = {
    "lm_head*": "head*",
    "*mlp*": "*feed_forward*",
    "*up_proj*": "*feed_forward.key*",
    "*attn*": "*attention*",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """How weights are quantized; `str` is its test id."""

    name: str
    precision: Any
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    fp8_cache: bool = False

    def __str__(self) -> str:
        return self.name


@functools.cache
def checkpoint(name: str, folder: Path) -> tuple[Any, Path]:
    """A small random model and its checkpoint."""
    model = scaled(MAKERS[name]())
    model.save_pretrained(folder / name)
    return model, folder / name


def load(folder: Path, case: Case, fuse: bool = True) -> Engine:
    precision = case.precision
    if isinstance(precision, dict) and "recipe-fp8" in case.name:  # of the two names for the same layer, one exists
        other = "*up_proj*" if "gpt2" in folder.name else "*c_fc*"
        precision = {pattern: value for pattern, value in precision.items() if pattern != other}
    if isinstance(precision, dict) and "rwkv" in folder.name:
        precision = {_RWKV_NAMES.get(pattern, pattern): value for pattern, value in precision.items()}
    settings = {"precision": precision, "quantization": case.details, "fp8_cache": case.fp8_cache}
    return poptransformer.load(folder, max_length=64, fuse=fuse, **settings)


def bodies(engine: Engine) -> Engine:
    """The same model on the function bodies."""
    return Engine(engine.runtime.compiled, engine.checkpoint, SessionSettings(use_native=False))


def weights_of(graph: ir.Graph, quantization_report: QuantizationReport) -> dict[str, np.ndarray]:
    """The values of every weight, by the checkpoint's name; what is packed is dequantized."""
    arrays = {name: value.const_value.numpy() for name, value in graph.initializers.items()}
    found = {name: array.astype(np.float32) for name, array in arrays.items() if name.endswith((".weight", ".bias"))}
    for report in quantization_report.packed:
        parts = [arrays.get(f"{report.name}.{part}") for part in ("codes", "scales", "offsets")]
        format, kind, *rest = report.stored.split()
        block = int(rest[0]) if kind == "block" else 0
        assert FORMATS[format].bits == (4 if format == "int4" else 8)
        found[report.name] = PackedWeight(format, *report.shape, block, *parts).dequantize()
    return found


def rounded(x: torch.Tensor, format: str, scaling: str) -> torch.Tensor:
    """What `RoundToFloat8` makes of activations."""
    kind = FORMATS[format]
    scale = np.abs(x.numpy()).max(-1, keepdims=True) / np.float32(kind.largest)
    if scaling == "power_of_two":
        scale = np.exp2(np.ceil(np.log2(scale)))
    narrow = np.clip(x.numpy() / scale, -kind.largest, kind.largest).astype(kind.dtype)
    return torch.from_numpy(narrow.astype(np.float32) * scale)


def roundings(graph: ir.Graph) -> dict[str, tuple[str, str]]:
    """Format and scaling by which the inputs of layers are rounded, by the layer's name."""
    found = {}
    for node in graph:
        source = node.inputs[0].producer() if node.op_type == "QuantizedLinear" else None
        if source is not None and source.op_type == "RoundToFloat8":
            layer = str(node.name).rpartition("/")[0].replace("/", ".")
            found[layer] = tuple(source.attributes[name].as_string() for name in ("format", "scaling"))
    return found


def put_together(shares: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The whole weight; a bias that one replica adds for all is the first one's."""
    divided = [axis for axis, size in enumerate(shape) if shares[0].shape[axis] != size]
    return np.concatenate(shares, divided[0]) if divided else shares[0]


def with_weights_of(model: torch.nn.Module, plain: Program) -> torch.nn.Module:
    """A copy of the module with the weights of all replicas of a program, and its rounding of inputs, if any."""
    other = copy.deepcopy(model)
    shares = [weights_of(part.graph, plain.report) for part in (plain.model, *plain.peers)]
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(torch.from_numpy(put_together([share[name] for share in shares], parameter.shape)))
    for layer, settings in roundings(plain.model.graph).items():
        other.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, settings=settings: (rounded(args[0], *settings),)
        )
    return other


def dequantized(model: Any, plain: Engine) -> Any:
    """A copy of the PyTorch model that computes with the weights and roundings of `plain`, which must not be fused."""
    graph = plain.runtime.compiled.model.graph
    values = weights_of(graph, plain.quantization_report)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if not name.endswith((".weight", ".bias")):
                continue  # vectors of RWKV, which no precision touches
            value = values.get(name, values.get("lm_head.weight") if name.startswith("lm_head") else None)
            is_conv = isinstance(copy.get_submodule(name.rpartition(".")[0]), Conv1D) and parameter.ndim == 2
            parameter.copy_(torch.from_numpy(value.T.copy() if is_conv else value))
    for layer, settings in roundings(graph).items():
        copy.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, settings=settings: (rounded(args[0], *settings), *args[1:])
        )
    return copy.eval()
