# SPDX-License-Identifier: Apache-2.0
"""Who works when: the phases of a token on each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from poptransformer.ipu.explain import describe
from poptransformer.ipu.pictures.style import TIME, TIME_WORDS, picture
from poptransformer.ipu.plan import Plan
from poptransformer.ipu.timeline import Phase, segments_of, timeline


def draw_gantt(path: Path, plan: Plan, name: str) -> None:
    """Draws one row for each stage over the time of a prompt and of a token, and below one block, closer."""
    phases = timeline(plan)
    height = max(1.2, min(6.0, 0.3 * len(plan.stages)))
    with picture(path, width=12.0, height=4.4 + 2 * height, ratios=(height, height, 2.2)) as (figure, axes):
        tokens = plan.replica.workload.prompt_tokens
        _draw_rows(axes[0], timeline(plan, of_prompt=True), plan)
        of_each = f" of each of {len(plan.stages)} batches" if plan.is_pipelined else ""
        axes[0].set_title(f"A prompt of {tokens} token{'s' if tokens > 1 else ''}{of_each}", fontsize=11)
        _draw_rows(axes[1], phases, plan)
        axes[1].set_title(f"A token; its times are unvalidated. {_manner(plan)}", fontsize=11)
        _draw_detail(axes[2], plan, phases)
        figure.suptitle(f"{name} on {plan.device.name}: who works when, {describe(plan)}")
        shown = [kind for kind in TIME if any(phase.kind == kind for phase in phases)]
        handles = [_patch(kind) for kind in shown]
        figure.legend(handles, [TIME_WORDS[kind] for kind in shown], loc="outside lower center", ncols=4, frameon=False)


def _manner(plan: Plan) -> str:
    if plan.is_pipelined:
        return f"{len(plan.stages)} batches are in flight; one token of each is shown."
    return "" if len(plan.stages) == 1 else "A stage waits while the others work."


def _patch(kind: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=TIME[kind])


def _unit(seconds: float) -> tuple[str, float]:
    """A unit in which a time has few digits, and what seconds are multiplied by."""
    return ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def _draw_rows(axis: Any, phases: list[Phase], plan: Plan) -> None:
    """One row for each stage."""
    stages = len(plan.stages)
    end = max(phase.start + phase.duration for phase in phases)
    unit, factor = _unit(end)
    for kind, colour in TIME.items():
        for stage in range(stages):
            bars = [
                (phase.start * factor, phase.duration * factor)
                for phase in phases
                if phase.kind == kind and phase.stage == stage
            ]
            if bars:
                axis.broken_barh(bars, (stage - 0.4, 0.8), facecolors=colour, linewidth=0)
    axis.set_ylim(stages - 0.4, -0.6)
    step = max(1, -(-stages // 20))
    axis.set_yticks(range(0, stages, step))
    axis.set_xlim(0, end * factor)
    axis.set_xlabel(f"time, {unit}")
    axis.set_ylabel("stage" if plan.replicas == 1 else f"stage ({plan.replicas} IPUs)")


def _draw_detail(axis: Any, plan: Plan, phases: list[Phase]) -> None:
    """One block of the stage that has most of them, its nodes named."""
    stage = max(plan.stages, key=lambda stage: stage.blocks)
    segments = segments_of(plan, stage)
    segment = next((segment for segment in segments if segment.name.startswith("block")), segments[0])
    nodes = {op.name for op in segment.ops}
    own = [phase for phase in phases if phase.stage == stage.index and phase.batch == 0 and phase.name in nodes]
    start, end = own[0].start, own[-1].start + own[-1].duration
    unit, factor = _unit(end - start)
    for phase in own:
        span = ((phase.start - start) * factor, phase.duration * factor)
        axis.broken_barh([span], (-0.4, 0.8), facecolors=TIME[phase.kind], edgecolor="white", linewidth=0.3)
    _name_nodes(axis, own, start, end, factor)
    axis.set_ylim(-0.5, 2.2)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlim(0, 1.08 * (end - start) * factor)
    axis.set_xlabel(f"time, {unit}")
    axis.set_title(f"{segment.name} on stage {stage.index}, a token, closer", fontsize=11)


def _name_nodes(axis: Any, phases: list[Phase], start: float, end: float, factor: float) -> None:
    """Writes the names of nodes that take long enough to have room for one."""
    spans: dict[str, tuple[float, float]] = {}
    for phase in phases:
        low, _ = spans.get(phase.name, (phase.start, 0.0))
        spans[phase.name] = (low, phase.start + phase.duration)
    last = -1.0
    for name, (low, high) in spans.items():
        middle = (low + high) / 2 - start
        if middle - last < 0.022 * (end - start) or high - low < 0.012 * (end - start):
            continue
        last = middle
        axis.text(middle * factor, 0.5, _short(name), rotation=40, fontsize=8, ha="left", va="bottom")


def _short(name: str) -> str:
    """The end of a node's name, without what all have in common."""
    parts = [part for part in name.split("/") if not part.startswith(("layers.", "h.", "model", "transformer"))]
    return "/".join(parts[-2:])
