# SPDX-License-Identifier: Apache-2.0
"""From a model's configuration to a graph that an emulated IPU can cost: no weights are read, no network is needed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.resources
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from poptransformer import passes
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import Checkpoint, HFConfig, blank_checkpoint, open_checkpoint
from poptransformer.errors import ConfigError
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


class BuiltGraphs:
    """A model's step graphs, one for each number of replicas, built when they are asked for and kept.

    Args:
        make: number of replicas -> the model, its graph still to be built.
    """

    def __init__(self, make: Callable[[int], HFModel]) -> None:
        self._make = make
        self._built: dict[int, HFModel | ConfigError] = {}

    def model(self, replicas: int) -> HFModel:
        """Returns the model of one of `replicas` replicas.

        Raises:
            ConfigError: the model cannot be divided among so many.
        """
        if replicas not in self._built:
            try:
                self._built[replicas] = self._build(replicas)
            except ConfigError as error:
                self._built[replicas] = error
        found = self._built[replicas]
        if isinstance(found, ConfigError):
            raise found
        return found

    def _build(self, replicas: int) -> HFModel:
        with _quiet():
            model = self._make(replicas)
            model.build_graph()
            passes.matmul_to_linear(ir.Model(model.graph.ir_graph, ir_version=IR_VERSION))
        return model


@dataclasses.dataclass(frozen=True)
class PlannedModel:
    """A model without weights.

    Attributes:
        name: what it is called.
        graphs: its step graphs.
        recipe: how its weights will be stored.
        fp8_cache: whether keys and values take 8 bits.
    """

    name: str
    graphs: BuiltGraphs
    recipe: Recipe
    fp8_cache: bool = False
    _known: dict[int, StepGraph] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def sharded(self, replicas: int) -> StepGraph:
        """Returns the step graph of one of `replicas` replicas.

        Raises:
            ConfigError: the model cannot be divided among so many.
        """
        if replicas not in self._known:
            graph = self.graphs.model(replicas).graph.ir_graph
            self._known[replicas] = step_graph(graph, self.recipe, self.fp8_cache, replicas)
        return self._known[replicas]

    def stored_as(self, recipe: Recipe) -> PlannedModel:
        """The same model with its weights stored in another way; its graphs are not built again."""
        return PlannedModel(self.name, self.graphs, recipe, self.fp8_cache)

    @property
    def graph(self) -> StepGraph:
        """The step graph of the whole model."""
        return self.sharded(1)

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.graphs.model(1).max_length

    @property
    def stored_bits(self) -> int:
        """Bits of the weights that the checkpoint holds."""
        return _checkpoint_bits(self.graphs.model(1).checkpoint)

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
    """Returns a model to be planned; its graphs are built over blank weights, one for each number of replicas.

    Args:
        config: the model's configuration.
        recipe: how its weights will be stored.
        fp8_cache: whether keys and values take 8 bits.
        model_class: what builds it; None finds the class by the configuration.
        max_length: tokens of prompt and answer together; None is what the model was trained for.
    """
    from poptransformer.models import model_class_for

    cls, checkpoint = model_class or model_class_for(config), blank_checkpoint(config)

    def make(replicas: int) -> HFModel:
        with use_build(Build(model_type="tp", num_replicas=replicas, precision="fp32")):
            return cls.from_checkpoint(checkpoint, max_length=max_length)

    return PlannedModel(config.source, BuiltGraphs(make), recipe, fp8_cache)


def built_model(model: HFModel) -> PlannedModel:
    """Returns a model that was compiled, to be costed: its graph as it was before the passes.

    Args:
        model: stays as it is; its weights are not read.
    """

    def make(replicas: int) -> HFModel:
        again = copy.copy(model)
        again.build = dataclasses.replace(model.build, model_type="tp", num_replicas=replicas, replica=0)
        return again

    return PlannedModel(model.checkpoint.source, BuiltGraphs(make), model.build.recipe, model.fp8_cache)


def step_graph(graph: ir.Graph, recipe: Recipe, fp8_cache: bool, replicas: int) -> StepGraph:
    """Returns a graph that can be costed.

    Args:
        graph: as layers wrote it, its products with weights as `Linear`.
        recipe: how its weights will be stored.
        fp8_cache: whether keys and values take 8 bits.
        replicas: how many share the model.
    """
    numbers = numbers_of(recipe, fp8_cache)
    with _quiet():
        chosen = planned_choices(ir.Model(graph, ir_version=IR_VERSION), recipe)
    initializers = graph.initializers
    stored = {name: _stored(initializers[name], choice, numbers) for name, choice in chosen.items()}
    return StepGraph(graph, numbers, stored, replicas)


def _checkpoint_bits(checkpoint: Checkpoint) -> int:
    """Bits of a checkpoint's matrices: of its packed ones (chatglm's `quantization_bit`), or of its floats."""
    packed = checkpoint.config.get("quantization_bit")
    return packed or 8 * checkpoint.state_dict.get_tensor("any", [1]).dtype.itemsize


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
