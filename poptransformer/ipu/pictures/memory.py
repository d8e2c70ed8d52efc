# SPDX-License-Identifier: Apache-2.0
"""Memory of each stage's fullest tile, and of the fullest one over the steps of a prompt and a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from poptransformer.ipu.explain import describe
from poptransformer.ipu.memory import CATEGORIES
from poptransformer.ipu.pictures.style import LIMIT, MEMORY, picture
from poptransformer.ipu.plan import Plan
from poptransformer.ipu.segments import Segments
from poptransformer.ipu.timeline import Level, levels

KIB = 1024


def draw_memory(path: Path, plan: Plan, name: str) -> None:
    """Draws a stacked bar for each stage, against the limit of a tile."""
    stages = plan.stages
    with picture(path, width=max(7.0, min(18.0, 2.5 + 0.55 * len(stages)))) as (figure, (axis,)):
        bottom = [0.0] * len(stages)
        for category in CATEGORIES:
            heights = [stage.memory[category] / KIB for stage in stages]
            axis.bar(range(len(stages)), heights, 0.72, bottom=bottom, color=MEMORY[category], label=category)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        limit = plan.device.tile_bytes / KIB
        axis.axhline(limit, color=LIMIT, linewidth=1.5, linestyle="--")
        axis.text(len(stages) - 0.45, limit, f"limit {limit:,.0f} KiB", color=LIMIT, ha="right", va="bottom")
        for index, top in enumerate(bottom):
            if len(stages) <= 24:
                axis.text(index, top, f"{top / limit:.0%}", ha="center", va="bottom", fontsize=9)
        axis.set_ylim(0, 1.14 * max(limit, *bottom))
        axis.set_xlim(-0.6, len(stages) - 0.4)
        _stage_ticks(axis, plan)
        axis.set_ylabel("KiB on the fullest tile")
        axis.set_title(f"{name} on {plan.device.name}: memory per tile, {describe(plan)}")
        figure.legend(
            *axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(CATEGORIES), frameon=False
        )


def _stage_ticks(axis: Any, plan: Plan) -> None:
    """Numbers of the stages, and below them what they hold where there is room."""
    labels = []
    for stage in plan.stages:
        held = f"{stage.blocks} block{'s' if stage.blocks != 1 else ''}" if stage.blocks else ""
        ends = [word for word, is_there in (("embed", stage.has_embedding), ("head", stage.has_head)) if is_there]
        labels.append("\n".join(part for part in (str(stage.index), held, *ends) if part))
    if len(labels) > 24:
        step = -(-len(labels) // 24)
        axis.set_xticks(range(0, len(labels), step), [str(index) for index in range(0, len(labels), step)])
    else:
        axis.set_xticks(range(len(labels)), labels, fontsize=9)
    axis.set_xlabel("stage, one IPU of each replica")


def draw_liveness(path: Path, plan: Plan, prompt: Segments, name: str) -> None:
    """Draws the fullest stage's memory over the nodes of a prompt's step and of a token's."""
    stage = plan.worst
    workload = plan.replica.workload
    with picture(path, width=11.0, height=8.0, rows=2) as (figure, axes):
        for axis, step, title in (
            (axes[0], prompt, f"a prompt of {workload.prompt_tokens} tokens"),
            (axes[1], plan.replica.token, "a token"),
        ):
            found = levels(plan, stage, step)
            _draw_levels(axis, found, plan.device.tile_bytes / KIB)
            axis.set_title(f"Stage {stage.index} ({stage.content}) while {title} is computed", fontsize=11)
        figure.suptitle(f"{name} on {plan.device.name}: memory of the fullest tile over the steps")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _draw_levels(axis: Any, found: list[Level], limit: float) -> None:
    steps = range(len(found) + 1)
    order = ("weights", "KV cache", "code", "activations", "partials")
    series = [[level.bytes[category] / KIB for level in found] for category in order]
    closed = [values + values[-1:] for values in series]
    axis.stackplot(steps, closed, step="post", colors=[MEMORY[category] for category in order], labels=order)
    axis.axhline(limit, color=LIMIT, linewidth=1.5, linestyle="--", label="limit")
    axis.set_xlim(0, len(found))
    axis.set_ylim(0, 1.1 * max(limit, max(sum(level.bytes.values()) for level in found) / KIB))
    axis.set_ylabel("KiB")
    starts = [index for index in range(len(found)) if index == 0 or found[index].segment != found[index - 1].segment]
    kept = starts[:: max(1, -(-len(starts) // 14))]
    axis.set_xticks(kept, [found[index].segment.replace("block ", "block\n") for index in kept], fontsize=8, ha="left")
    peak = max(range(len(found)), key=lambda index: sum(found[index].bytes.values()))
    top = sum(found[peak].bytes.values()) / KIB
    label = "/".join(found[peak].name.split("/")[-2:])
    is_right = peak > len(found) / 2
    axis.annotate(
        f"most: {label}, {top:,.0f} KiB",
        (peak + 0.5, top),
        xytext=(-12 if is_right else 12, 8),
        textcoords="offset points",
        ha="right" if is_right else "left",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8},
    )
