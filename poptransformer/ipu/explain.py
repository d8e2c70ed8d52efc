# SPDX-License-Identifier: Apache-2.0
"""A plan in words."""

from __future__ import annotations

from collections.abc import Sequence

from poptransformer.ipu.checks import problems, warnings
from poptransformer.ipu.plan import Plan
from poptransformer.ipu.planner import Search
from poptransformer.ipu.segments import StepGraph
from poptransformer.ipu.validation import error_range

OBJECTIVE_WORDS = {
    "latency": "the lowest latency of a token",
    "throughput": "the most tokens per second",
    "ipus": "the fewest IPUs",
}
ASSUMPTIONS = (
    "Phases of an IPU follow each other: compute, exchange and sync do not overlap.",
    "Weights lie as blocks of 16x16 elements, dealt out evenly to the tiles; caches are updated in place.",
    "A prompt is computed in one step; a token's attention reads the slots that the workload says.",
    "Replicas are tensor parallel, divided as the engine divides them, over a ring of IPU-Links.",
    "All replicas get all logits, as in the engine; an IPU could exchange its likeliest tokens only.",
    "A pipeline has one batch in flight for each stage, and each stage keeps the caches of all of them.",
    "Code takes a fixed part of each tile and a part for each distinct op; neither is verified.",
)


def footer() -> str:
    """What every report ends with: how far to trust it."""
    return (
        f"Cycle model: errors of {error_range()} (make validate-ipu). No public measurement of a token's latency on an "
        "IPU exists: times of decoding are unvalidated."
    )


def milliseconds(seconds: float) -> str:
    """Seconds as ms with three digits that count."""
    return f"{1e3 * seconds:.3g} ms"


def describe(plan: Plan) -> str:
    """One line: stages, replicas, IPUs, memory."""
    stages = f"{len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"
    replicas = f" x {plan.replicas} replicas" if plan.replicas > 1 else ""
    kind = ", pipelined" if plan.is_pipelined else ""
    return f"{stages}{replicas}{kind} on {plan.ipus} IPU{'s' if plan.ipus > 1 else ''}"


def bound_in_words(plan: Plan) -> str:
    """What a token's time goes to."""
    cycles = plan.token
    parts = sorted(cycles.parts().items(), key=lambda item: -item[1])
    shares = ", ".join(f"{kind} {value / cycles.total:.0%}" for kind, value in parts if value / cycles.total >= 0.005)
    waiting = 1 - cycles.compute / cycles.total
    is_largest = getattr(cycles, cycles.bound) >= max(cycles.parts().values())
    because = "" if is_largest else f" (exchange, sync and links take {waiting:.0%} together)"
    return f"{cycles.bound}-bound{because}: {shares}"


def explain(plan: Plan, found: Search, objective: str, own: Plan | None = None) -> list[str]:
    """Returns why a plan was chosen, in sentences.

    Args:
        plan: the plan.
        found: what it was chosen from.
        objective: `latency`, `throughput` or `ipus`.
        own: the user's own plan.
    """
    worst, limit = plan.worst, plan.device.tile_bytes
    lines = [
        f"{describe(plan)} gives {OBJECTIVE_WORDS[objective]} of the {len(found.plans)} plans that fit on "
        f"{plan.device.name}: {milliseconds(plan.latency)} for a token, {plan.tokens_per_second:,.0f} tokens/s.",
        f"A token is {bound_in_words(plan)}.",
        f"The fullest tile is on stage {worst.index} ({worst.content}): {worst.bytes:,.0f} of {limit:,} B "
        f"({worst.bytes / limit:.0%}).",
    ]
    if plan.is_pipelined:
        lines.append(
            f"{len(plan.stages)} batches are in flight, so that many requests must be there at a time; a prompt's pass "
            f"leaves stages waiting {plan.bubble:.0%} of its time."
        )
    lines += _alternatives(plan, found)
    if own is not None:
        lines.append(_compared(plan, own))
    lines += [f"{count} replicas: {reason}." for count, reason in sorted(found.rejected.items())[:2]]
    return lines


def _alternatives(plan: Plan, found: Search) -> list[str]:
    """What fewer and more replicas would do."""
    lines = []
    same_kind = [other for other in found.plans if other.is_pipelined == plan.is_pipelined]
    for word, others in (
        ("Fewer", [other for other in same_kind if other.replicas < plan.replicas]),
        ("More", [other for other in same_kind if other.replicas > plan.replicas]),
    ):
        if others:
            best = min(others, key=lambda other: other.interval if plan.is_pipelined else other.latency)
            lines.append(
                f"{word} replicas: {describe(best)} takes {milliseconds(best.latency)} for a token, "
                f"{best.tokens_per_second:,.0f} tokens/s."
            )
    return lines


def _compared(plan: Plan, own: Plan) -> str:
    """The user's plan beside the chosen one."""
    fate = "fits" if own.fits else "does not fit"
    share = own.worst.bytes / own.device.tile_bytes
    return (
        f"Your own plan, {describe(own)} with layer_per_ipu={own.layer_per_ipu}, {fate}: {milliseconds(own.latency)} "
        f"for a token, {own.latency / plan.latency:.2f} times the chosen plan's; fullest tile {share:.0%}."
    )


def short_form(plan: Plan, graph: StepGraph) -> Sequence[str]:
    """Returns the few lines that an example prints after a run."""
    worst, limit = plan.worst, plan.device.tile_bytes
    lines = [
        f"Emulated on {plan.device.name}: {describe(plan)}",
        f"Fullest tile: {worst.bytes:,.0f} of {limit:,} B ({worst.bytes / limit:.0%}) on stage {worst.index}, "
        f"{worst.content}",
        f"Prompt: {milliseconds(plan.device.seconds(plan.prompt.total))}, token: {milliseconds(plan.latency)} "
        f"(unvalidated), {plan.tokens_per_second:,.0f} token/s, {bound_in_words(plan)}",
        *problems(plan, graph),
        *warnings(plan),
    ]
    return [*lines, footer()]
