# SPDX-License-Identifier: Apache-2.0
"""Memory of each stage's fullest tile, and of the fullest one over the steps of a prompt and a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poptransformer.ipu.explain import describe
from poptransformer.ipu.memory import CATEGORIES
from poptransformer.ipu.pictures.style import BEHIND_TEXT, LIMIT, MEMORY, picture
from poptransformer.ipu.plan import Plan
from poptransformer.ipu.timeline import Level, levels

KIB = 1024
STAYING = ("weights", "KV cache", "code")
MOVING = ("activations", "partials")


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
        axis.set_title(f"{name} on {plan.device.name}: memory per tile\n{describe(plan)}")
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


def draw_liveness(path: Path, plan: Plan, name: str) -> None:
    """Draws the fullest stage's memory over the nodes of a prompt's step, and what comes and goes for a token."""
    stage = plan.worst
    limit = plan.device.tile_bytes / KIB
    stays = sum(stage.memory[category] for category in STAYING) / KIB
    with picture(path, width=11.0, height=8.0, ratios=(1, 1)) as (figure, axes):
        for_prompt = levels(plan, stage, plan.replica.prompt)
        _draw_levels(axes[0], for_prompt, (*STAYING, *MOVING))
        axes[0].axhline(limit, color=LIMIT, linewidth=1.5, linestyle="--", label="limit")
        axes[0].set_ylim(0, 1.14 * max(limit, max(sum(level.bytes.values()) for level in for_prompt) / KIB))
        tokens = plan.replica.workload.prompt_tokens
        axes[0].set_title(
            f"Stage {stage.index} ({stage.content}): a prompt of {tokens} tokens, everything", fontsize=11
        )
        _draw_levels(axes[1], levels(plan, stage, plan.replica.token), MOVING)
        axes[1].set_ylim(0, 1.25 * axes[1].get_ylim()[1])
        axes[1].set_title(
            f"A token: what comes and goes; weights, caches and code take another {stays:,.0f} of {limit:,.0f} KiB",
            fontsize=11,
        )
        figure.suptitle(f"{name} on {plan.device.name}: memory of the fullest tile, node by node")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _draw_levels(axis: Any, found: list[Level], categories: Sequence[str]) -> None:
    """Stacks categories over the nodes, names the segments and the fullest moment."""
    series = [[level.bytes[category] / KIB for level in found] for category in categories]
    closed = [values + values[-1:] for values in series]
    steps = range(len(found) + 1)
    axis.stackplot(steps, closed, step="post", colors=[MEMORY[category] for category in categories], labels=categories)
    axis.set_xlim(0, len(found))
    axis.set_ylabel("KiB on the fullest tile")
    starts = [index for index in range(len(found)) if index == 0 or found[index].segment != found[index - 1].segment]
    step = max(1, -(-len(starts) // 14))
    room = 0.05 * len(found)
    kept = [index for place, index in enumerate(starts) if place % step == 0 or place == len(starts) - 1]
    kept = [index for index, after in zip(kept, [*kept[1:], len(found) + room], strict=True) if after - index >= room]
    axis.set_xticks(kept, [found[index].segment.replace("block ", "block\n") for index in kept], fontsize=8, ha="left")
    sums = [sum(values) for values in zip(*series, strict=True)]
    peak = max(range(len(found)), key=sums.__getitem__)
    is_right = peak > len(found) / 2
    axis.annotate(
        f"most: {'/'.join(found[peak].name.split('/')[-2:])}, {sums[peak]:,.1f} KiB",
        (peak + 0.5, sums[peak]),
        xytext=(-12 if is_right else 12, 9),
        textcoords="offset points",
        ha="right" if is_right else "left",
        fontsize=9,
        bbox=BEHIND_TEXT,
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8},
    )
