# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a graph that an emulated IPU can cost: no weights are read, no network is needed."""

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
from poptransformer.errors import ConfigError
from poptransformer.graph import IR_VERSION, WeightTensor
from poptransformer.ipu.checks import check_prompt, explain_failure
from poptransformer.ipu.device import Device, load_device
from poptransformer.ipu.plan import Plan, evaluate
from poptransformer.ipu.planner import Search, fixed_stages, powers_of_two, replica_variants, search
from poptransformer.ipu.segments import StepGraph
from poptransformer.ipu.stage import Workload, make_replica
from poptransformer.ipu.trace import Stored
from poptransformer.ipu.work import Numbers
from poptransformer.passes.quantize import planned_choices, weight_spec
from poptransformer.quantization.layout import blocks_per_row
from poptransformer.recipe import Choice, Recipe
from poptransformer.rules import AUTO
from poptransformer.utils.automatic import DEFAULT_DEVICE
from poptransformer.utils.targets import find_target

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel
    from poptransformer.utils.prepare import CheckedConfig

SWEPT = ("fp16", "fp8", "int8", "int4")
LENGTHS = (0.5, 1.0, 2.0)
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
        whole = ir.Model(model.graph.ir_graph, ir_version=IR_VERSION)
        passes.matmul_to_linear(whole)
        chosen = planned_choices(whole, recipe)
    numbers = numbers_of(recipe, fp8_cache)
    initializers = whole.graph.initializers
    stored = {name: _stored(initializers[name], choice, numbers) for name, choice in chosen.items()}
    graph = StepGraph(whole.graph, numbers, stored)
    return PlannedModel(config.source, graph, model.max_length, _checkpoint_bits(config, checkpoint))


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


# -- configurations -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Planned:
    """A configuration's model, and what the planner found for it.

    Attributes:
        model: the model.
        device: the IPU.
        workload: what is run.
        search: the best plans.
        chosen: the plan for the configured objective.
    """

    model: PlannedModel
    device: Device
    workload: Workload
    search: Search
    chosen: Plan


def model_of(checked: CheckedConfig) -> PlannedModel:
    """Builds the model that a configuration names, without weights.

    Raises:
        ConfigError: it names none.
    """
    given = checked.model
    name = given.get("override_hfconfig_from_json") or given.get("hf_model_name")
    if not name:
        raise ConfigError(
            "model.hf_model_name is empty. Set it to one of "
            f"{', '.join(shipped_configs())}, to a folder or to a config.json."
        )
    recipe = Recipe.of(checked.global_args.precision, checked.global_args.quantization)
    config = find_config(name, given.get("hf_cache_dir"))
    cls = find_target("model._target_", given["_target_"])
    model = build_model(config, recipe, bool(given.get("fp8_cache")), cls, given.get("max_length"))
    return dataclasses.replace(model, name=str(given.get("hf_model_name") or name))


def workload_of(checked: CheckedConfig, model: PlannedModel) -> Workload:
    """Returns what a configuration runs: 128 tokens of prompt, or half of `max_length`, unless it says otherwise.

    Raises:
        ConfigError: the prompt is longer than prompt and answer may be.
    """
    prompt = checked.plan.prompt_length or max(1, min(128, model.max_length // 2))
    check_prompt(prompt, model.max_length)
    return Workload(checked.global_args.batch_size, prompt, model.max_length, checked.plan.attention)


def device_of(checked: CheckedConfig) -> Device:
    """Returns the configured device; a C600 where there is none."""
    return checked.device or load_device(DEFAULT_DEVICE)


def plan_config(checked: CheckedConfig, model: PlannedModel | None = None) -> Planned:
    """Plans a configuration; a number of replicas that is not `auto` stays as it is, and so do stages.

    Args:
        checked: the configuration.
        model: its model, where it is built already.

    Raises:
        ConfigError: no plan fits.
    """
    model = model or model_of(checked)
    device, workload = device_of(checked), workload_of(checked, model)
    asked, layers = checked.global_args.num_replicas, checked.model.get("layer_per_ipu")
    replicas = None if asked == AUTO else [int(asked)]
    if layers in (AUTO, None):
        found = search(model.graph, device, workload, replicas, checked.plan.max_ipus)
    else:
        limit = checked.plan.max_ipus or device.max_ipus
        found = fixed_stages(model.graph, device, workload, layers, replicas or powers_of_two(limit))
    if not found.plans:
        whole = evaluate(make_replica(model.graph, device, workload, 1), [model.blocks])
        raise ConfigError(explain_failure(whole, found.rejected))
    return Planned(model, device, workload, found, found.best(checked.plan.objective))


def score_config(checked: CheckedConfig, model: PlannedModel | None = None) -> tuple[Plan, PlannedModel]:
    """Costs a configuration's own division into stages and replicas, whether it fits or not.

    Args:
        checked: the configuration, without `auto`.
        model: its model, where it is built already.

    Raises:
        ConfigError: the layers do not add up, or the heads cannot be divided.
    """
    model = model or model_of(checked)
    device, workload = device_of(checked), workload_of(checked, model)
    layers = checked.model.get("layer_per_ipu") or [model.blocks]
    variants = replica_variants(model.graph, device, workload, int(checked.global_args.num_replicas))
    plans = [evaluate(replica, layers) for replica in variants]
    return next((plan for plan in plans if plan.fits), plans[-1]), model


def sweep(checked: CheckedConfig, planned: Planned) -> Iterator[tuple[str, int, tuple[Plan, ...]]]:
    """Plans other precisions, and half and twice the length.

    Args:
        checked: the configuration.
        planned: what was found for it.

    Yields:
        Precision, `max_length` and the plans that fit.
    """
    own, length = planned.model, planned.workload.max_length
    precision = str(checked.global_args.precision)
    others = [name for name in SWEPT if name != precision and (planned.device.has_fp8 or name != "fp8")]
    for name in [precision, *others]:
        model = own
        if name != precision:
            global_args = dataclasses.replace(checked.global_args, precision=name)
            model = model_of(dataclasses.replace(checked, global_args=global_args))
        for factor in LENGTHS:
            workload = dataclasses.replace(planned.workload, max_length=max(1, round(factor * length)))
            workload = dataclasses.replace(workload, prompt_tokens=min(workload.prompt_tokens, workload.max_length))
            found = search(model.graph, planned.device, workload, None, checked.plan.max_ipus)
            yield name, workload.max_length, found.plans
