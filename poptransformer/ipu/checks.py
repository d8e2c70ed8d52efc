# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a plan, one sentence for each: the key, the value, the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable

from poptransformer.errors import ConfigError
from poptransformer.ipu.device import Device
from poptransformer.ipu.memory import CATEGORIES
from poptransformer.ipu.plan import Plan, Stage
from poptransformer.ipu.segments import StepGraph

FP8 = ("fp8", "fp8_weight")
BITS = {4: "int4", 8: "int8"}


def check_device(device: Device, precisions: Iterable[str]) -> None:
    """Raises where a precision asks for numbers that a device has not.

    Args:
        device: the IPU.
        precisions: names of precisions, of all rules of the recipe.

    Raises:
        ConfigError: fp8 on a device without it.
    """
    asked = [precision for precision in precisions if precision in FP8]
    if asked and not device.has_fp8:
        raise ConfigError(
            f"precision {asked[0]} on device {device.name}: fp8 needs C600; use device=c600 or precision=int8"
        )


def check_prompt(prompt_tokens: int, max_length: int) -> None:
    """Raises where a prompt is longer than prompt and answer may be.

    Raises:
        ConfigError: it is.
    """
    if prompt_tokens > max_length:
        raise ConfigError(
            f"prompt {prompt_tokens} > max_length {max_length}; shorten the prompt or raise model.max_length"
        )


def problems(plan: Plan, graph: StepGraph) -> list[str]:
    """Returns why a plan cannot run: tiles over their limit, too many IPUs.

    Args:
        plan: the plan.
        graph: its model, to say what would help.
    """
    found = [too_large(plan, stage, graph) for stage in plan.stages if stage.bytes > plan.device.tile_bytes]
    if plan.reserved > plan.device.max_ipus:
        found.append(
            f"{_size(plan)} need {plan.reserved} IPUs; "
            f"{plan.device.name.upper()} links at most {plan.device.max_ipus} {_noun(plan.device)}"
        )
    return found


def warnings(plan: Plan) -> list[str]:
    """Returns what is wasted: IPUs that the hardware reserves and nothing uses."""
    idle = plan.reserved - plan.ipus
    if not idle:
        return []
    return [f"{_size(plan)} = {plan.ipus} IPUs; hardware would reserve {plan.reserved}, {idle} idle"]


def _size(plan: Plan) -> str:
    return f"{_counted(len(plan.stages), 'stage')} x {_counted(plan.replicas, 'replica')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _noun(device: Device) -> str:
    return "cards" if "card" in device.description else "IPUs"


def too_large(plan: Plan, stage: Stage, graph: StepGraph) -> str:
    """Says what fills the fullest tile of a stage, and what would help."""
    total, limit = stage.bytes, plan.device.tile_bytes
    by_size = sorted(CATEGORIES, key=lambda category: -stage.memory[category])
    shares = [f"{category} {stage.memory[category] / total:.0%}" for category in by_size if stage.memory[category]]
    return (
        f"stage {stage.index} needs {total:,.0f} B on its fullest tile, limit {limit:,}: {', '.join(shares)}; "
        f"{_remedy(plan, stage, graph)}"
    )


def _remedy(plan: Plan, stage: Stage, graph: StepGraph) -> str:
    """More IPUs for the blocks of the stage, or fewer bits for its weights."""
    limit, total = plan.device.tile_bytes, stage.bytes
    fixed = stage.memory["activations"] + stage.memory["partials"] + stage.memory["code"]
    parts = []
    if stage.blocks > 1 and fixed < limit:
        more = math.ceil((total - fixed) / (limit - fixed)) - 1
        parts.append(f"add {_counted(more * plan.replicas, 'IPU')}")
    elif stage.blocks <= 1:
        parts.append("divide it among more replicas")
    widest = max((stored.bits for stored in graph.stored.values()), default=16)
    for bits in (8, 4):
        if bits < widest and total - stage.memory["weights"] * (1 - bits / widest) <= limit:
            parts.append(f"use {'fp8' if bits == 8 and plan.device.has_fp8 else BITS[bits]}")
            break
    if stage.memory["KV cache"] > 0.2 * total:
        parts.append("lower model.max_length or set model.fp8_cache=true")
    return " or ".join(parts) or "use a smaller model"


def weights_note(precision: str, graph: StepGraph, checkpoint_bits: int) -> str | None:
    """Says where a precision and the checkpoint's weights disagree; the engine converts them when it compiles.

    Args:
        precision: what is asked for.
        graph: the model.
        checkpoint_bits: bits of the weights that the checkpoint holds.
    """
    least = min((stored.bits for stored in graph.stored.values()), default=checkpoint_bits)
    if least == checkpoint_bits or min(least, checkpoint_bits) >= 16:
        return None
    own = BITS.get(checkpoint_bits) or f"fp{checkpoint_bits}"
    verb = "quantized" if least < checkpoint_bits else "unpacked"
    return f"precision {precision} requested but weights are {own}: they are {verb} when the model is compiled"


def explain_failure(whole: Plan, rejected: dict[int, str]) -> str:
    """Says why no plan fits.

    Args:
        whole: the model on one IPU.
        rejected: numbers of replicas that cannot be, and why.
    """
    device = whole.device
    nbytes = sum(stage.weight_bytes for stage in whole.stages)
    size = f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"
    text = (
        f"No plan fits: the weights take {size}, the SRAM of {nbytes / device.ipu_bytes:,.1f} IPUs; "
        f"{device.name.upper()} links at most {device.max_ipus} {_noun(device)}. Try a precision of fewer "
        "bits, a smaller model.max_length, or a larger device."
    )
    return text + "".join(f" Not tried: {reason}." for reason in list(rejected.values())[:1])
