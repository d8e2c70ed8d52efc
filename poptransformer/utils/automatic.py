# SPDX-License-Identifier: Apache-2.0
"""What a configuration leaves to the planner and to the emulated device."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from poptransformer.config import GlobalArgs
from poptransformer.recipe import Recipe
from poptransformer.rules import AUTO

if TYPE_CHECKING:
    from poptransformer.utils.prepare import CheckedConfig

logger = logging.getLogger(__name__)

DEFAULT_DEVICE = "c600"


def resolve(checked: CheckedConfig) -> CheckedConfig:
    """Fills in `auto`, and gives fp8 the formats of the device that was asked for.

    Args:
        checked: a checked configuration.

    Raises:
        ConfigError: no plan fits, or the device has no fp8.
    """
    checked = with_device_formats(checked)
    if AUTO not in (checked.global_args.num_replicas, checked.model.get("layer_per_ipu")):
        return checked
    from poptransformer.planning import global_args_of, plan_config

    plan = plan_config(checked).chosen
    logger.info(
        "planned for %s: num_replicas=%d, layer_per_ipu=%s%s",
        *(plan.device.name, plan.replicas, plan.layer_per_ipu, ", pipelined" if plan.is_pipelined else ""),
    )
    decided = global_args_of(plan, checked.global_args.batch_per_step)
    global_args = dataclasses.replace(checked.global_args, **decided)
    model = {**checked.model, "layer_per_ipu": plan.layer_per_ipu}
    return dataclasses.replace(checked, global_args=global_args, model=model)


def with_device_formats(checked: CheckedConfig) -> CheckedConfig:
    """An emulated IPU computes with its own 8-bit floats: F143 and F152, scaled by powers of two.

    Raises:
        ConfigError: the device has none.
    """
    if checked.device is None:
        return checked
    from poptransformer.ipu.checks import check_device

    check_device(checked.device, precisions_of(checked.global_args))
    quantization = dataclasses.replace(checked.global_args.quantization, fp8_convention="ipu")
    return dataclasses.replace(checked, global_args=dataclasses.replace(checked.global_args, quantization=quantization))


def precisions_of(global_args: GlobalArgs) -> list[str]:
    """Precisions of all rules of the recipe."""
    return [choice.precision for _, choice in Recipe.of(global_args.precision, global_args.quantization).rules]


def short_report(checked: CheckedConfig, model: Any) -> Sequence[str]:
    """Returns the lines that an example shows after a run on an emulated device: of the graph that ran.

    Args:
        checked: the configuration.
        model: the model that was compiled.
    """
    from poptransformer.ipu.explain import short_form
    from poptransformer.planning import built_model, score_config

    ran = built_model(model)
    return short_form(score_config(checked, ran), ran.graph)
