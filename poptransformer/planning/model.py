# SPDX-License-Identifier: Apache-2.0
"""From a model's configuration to a graph that an emulated IPU can cost: no weights are read, no network is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from poptransformer import passes
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import Checkpoint, HFConfig, blank_checkpoint, open_checkpoint
from poptransformer.graph import IR_VERSION, WeightTensor
from poptransformer.ipu.segments import StepGraph
from poptransformer.ipu.trace import Stored
from poptransformer.ipu.work import Numbers
from poptransformer.passes.quantize import planned_choices, weight_spec
from poptransformer.quantization.layout import blocks_per_row
from poptransformer.recipe import Choice, Recipe

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel

FLOAT_BITS = {"fp16": 16, "bf16": 16}


def shipped_configs() -> dict[str, Path]:
    """Returns hub name -> `config.json` of the checkpoints whose configuration comes with the package."""
    folder = Path(str(importlib.resources.files("poptransformer.ipu"))) / "configs"
    return {path.stem.replace("--", "/"): path for path in sorted(folder.glob("*.json"))}


def find_config(name: str, cache_dir: str | None = None) -> HFConfig:
    """Returns a model's configuration.

    Args:
        name: a `config.json` or a folder with one, a checkpoint of any kind, or the hub name of one that ships here.
        cache_dir: where hub downloads go, should one be needed.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json" or (path / "config.json").is_file():
        return HFConfig.from_file(path if path.suffix == ".json" else path / "config.json")
    shipped = shipped_configs()
    by_last_part = {key.rpartition("/")[2]: key for key in shipped}
    known = shipped.get(name) or shipped.get(by_last_part.get(name.rpartition("/")[2], ""))
    if known is not None and not path.is_file():
        return HFConfig.from_file(known)
    return open_checkpoint(name, cache_dir=cache_dir).config


@dataclasses.dataclass(frozen=True)
class PlannedModel:
    """A model without weights.

    Attributes:
        name: what it is called.
        graph: its step graph.
        max_length: tokens of prompt and answer together.
        stored_bits: bits of the weights that the checkpoint holds.
    """

    name: str
    graph: StepGraph
    max_length: int
    stored_bits: int

    @property
    def blocks(self) -> int:
        """Decoder blocks."""
        return max(self.graph.places) + 1


def build_model(
    config: HFConfig,
    recipe: Recipe,
    fp8_cache: bool = False,
    model_class: type[HFModel] | None = None,
    max_length: int | None = None,
) -> PlannedModel:
    """Builds a model's step graph over blank weights, one block on each IPU.

    Args:
        config: the model's configuration.
        recipe: how its weights will be stored.
        fp8_cache: whether keys and values take 8 bits.
        model_class: what builds it; None finds the class by the configuration.
        max_length: tokens of prompt and answer together; None is what the model was trained for.
    """
    from poptransformer.models import model_class_for

    cls = model_class or model_class_for(config)
    checkpoint = blank_checkpoint(config)
    with _quiet():
        with use_build(Build(precision="fp32")):
            ones = (1,) * cls.from_checkpoint(checkpoint).num_layers
            model = cls.from_checkpoint(checkpoint, max_length=max_length, layer_per_ipu=ones)
        model.build_graph()
        graph = step_graph(ir.Model(model.graph.ir_graph, ir_version=IR_VERSION), recipe, fp8_cache)
    return PlannedModel(config.source, graph, model.max_length, _checkpoint_bits(config, checkpoint))


def step_graph(whole: ir.Model, recipe: Recipe, fp8_cache: bool = False) -> StepGraph:
    """Returns a graph that can be costed.

    Args:
        whole: the graph as layers wrote it, one block on each IPU; its products with weights become `Linear`.
        recipe: how its weights will be stored.
        fp8_cache: whether keys and values take 8 bits.
    """
    passes.matmul_to_linear(whole)
    chosen = planned_choices(whole, recipe)
    numbers = numbers_of(recipe, fp8_cache)
    initializers = whole.graph.initializers
    stored = {name: _stored(initializers[name], choice, numbers) for name, choice in chosen.items()}
    return StepGraph(whole.graph, numbers, stored)


def _checkpoint_bits(config: HFConfig, checkpoint: Checkpoint) -> int:
    """Bits of a checkpoint's matrices: of its packed ones (chatglm's `quantization_bit`), or of its floats."""
    return config.get("quantization_bit") or 8 * checkpoint.state_dict.get_tensor("any", [1]).dtype.itemsize


def numbers_of(recipe: Recipe, fp8_cache: bool) -> Numbers:
    """Returns the formats that an IPU computes in: fp32 where all weights are, fp16 otherwise."""
    if all(choice.precision == "fp32" for _, choice in recipe.rules):
        return Numbers("fp32", 4, 4, 1 if fp8_cache else 4)
    return Numbers("fp16", 2, 2, 1 if fp8_cache else 2)


def _stored(value: ir.Value, choice: Choice, numbers: Numbers) -> Stored:
    """How a matrix `[N, K]` is stored, and what the matrix unit multiplies by it; fp32 is what the checkpoint has."""
    tensor = value.const_value
    if choice.is_float:
        own = 8 * tensor.array.dtype.itemsize if isinstance(tensor, WeightTensor) else 32
        bits = FLOAT_BITS.get(choice.precision, own)
        return Stored(min(bits, 8 * numbers.activation_bytes), 0, numbers.math)
    spec = weight_spec(choice)
    rows, depth = (dim if isinstance(dim, int) else 1 for dim in value.shape or (1, 1))
    scales = rows * blocks_per_row(depth, spec.block) if spec.block >= 0 else 1
    nbytes = scales * spec.kind.scale_dtype.itemsize * (1 if spec.symmetric else 2)
    return Stored(spec.kind.bits, nbytes, "fp8" if choice.precision == "fp8" else numbers.math)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the layers' log lines back: nothing is loaded or placed while a model is only planned."""
    loggers = [logging.getLogger(f"poptransformer.{part}") for part in ("layers", "models", "passes", "checkpoint")]
    loggers.append(logging.getLogger("poptransformer.report.progress"))
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
