# SPDX-License-Identifier: Apache-2.0
"""Plans for a checked configuration of the examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poptransformer.errors import ConfigError
from poptransformer.ipu.checks import check_prompt, explain_failure
from poptransformer.ipu.device import Device, load_device
from poptransformer.ipu.plan import Plan, evaluate
from poptransformer.ipu.planner import Search, fixed_stages, powers_of_two, replica_variants, search
from poptransformer.ipu.stage import Workload, make_replica
from poptransformer.planning.model import PlannedModel, build_model, find_config, shipped_configs
from poptransformer.recipe import Recipe
from poptransformer.rules import AUTO
from poptransformer.utils.automatic import DEFAULT_DEVICE
from poptransformer.utils.targets import find_target

if TYPE_CHECKING:
    from poptransformer.utils.prepare import CheckedConfig

SWEPT = ("fp16", "fp8", "int8", "int4")
LENGTHS = (0.5, 1.0, 2.0)


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
    return dataclasses.replace(model, name=title_of(str(name)))


def title_of(name: str) -> str:
    """What reports call a model: its hub name, or the last part of a path; a `config.json` is called as its folder."""
    path = Path(name)
    if path.suffix == ".json":
        return path.parent.name or path.stem if path.stem == "config" else path.stem.replace("--", "/")
    return path.name if "://" in name or path.exists() else name


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
        found = search(model.sharded, device, workload, replicas, checked.plan.max_ipus)
    else:
        limit = checked.plan.max_ipus or device.max_ipus
        found = fixed_stages(model.sharded, device, workload, layers, replicas or powers_of_two(limit))
    if not found.plans:
        whole = evaluate(make_replica(model.graph, device, workload), [model.blocks])
        raise ConfigError(explain_failure(whole, found.rejected))
    return Planned(model, device, workload, found, found.best(checked.plan.objective))


def global_args_of(plan: Plan, batch_per_step: int) -> dict[str, Any]:
    """Returns the keys of `global_args` that a plan decides: replicas, and whether its stages overlap.

    Args:
        plan: the plan.
        batch_per_step: batches of a step as configured; a pipeline takes one for each stage at least.
    """
    found: dict[str, Any] = {"num_replicas": plan.replicas, "enable_pipeline": plan.is_pipelined}
    if plan.replicas > 1:
        found["model_type"] = "tp"
    if plan.is_pipelined:
        found["batch_per_step"] = max(batch_per_step, len(plan.stages))
    return found


def score_config(checked: CheckedConfig, model: PlannedModel) -> Plan:
    """Costs a configuration's own division into stages and replicas, whether it fits or not.

    Args:
        checked: the configuration, without `auto`.
        model: its model.

    Raises:
        ConfigError: the layers do not add up, or the heads cannot be divided.
    """
    device, workload = device_of(checked), workload_of(checked, model)
    layers = checked.model.get("layer_per_ipu") or [model.blocks]
    variants = replica_variants(model.sharded(int(checked.global_args.num_replicas)), device, workload)
    is_pipelined = checked.global_args.enable_pipeline and len(layers) > 1
    plans = [evaluate(replica, layers, is_pipelined) for replica in variants]
    return next((plan for plan in plans if plan.fits), plans[-1])


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
            model = own.stored_as(Recipe.of(name, checked.global_args.quantization))
        for factor in LENGTHS:
            workload = dataclasses.replace(planned.workload, max_length=max(1, round(factor * length)))
            workload = dataclasses.replace(workload, prompt_tokens=min(workload.prompt_tokens, workload.max_length))
            if name == precision and workload == planned.workload:
                plans = planned.search.plans
            else:
                plans = search(model.sharded, planned.device, workload, None, checked.plan.max_ipus).plans
            yield name, workload.max_length, plans
