# SPDX-License-Identifier: Apache-2.0
"""What if: other replicas, stages, precisions and lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poptransformer.ipu.pictures.style import PRECISIONS, note, picture
from poptransformer.ipu.plan import Plan

MARKERS = "osD^vP*"


@dataclasses.dataclass(frozen=True)
class Variant:
    """The plans of one precision and length.

    Attributes:
        precision: of the weights.
        max_length: tokens of prompt and answer together.
        plans: plans that fit.
    """

    precision: str
    max_length: int
    plans: tuple[Plan, ...]


def front_of(points: Sequence[tuple[float, float]], is_more_better: bool) -> list[tuple[float, float]]:
    """The points that no other with as few IPUs beats, in order."""
    front: list[tuple[float, float]] = []
    sign = -1 if is_more_better else 1
    for ipus, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((ipus, value))
    return front


def draw_sweep(path: Path, variants: Sequence[Variant], chosen: Plan, name: str) -> None:
    """Draws latency and throughput of all plans over the IPUs that they reserve, and both fronts."""
    precisions = list(dict.fromkeys(variant.precision for variant in variants))
    lengths = list(dict.fromkeys(variant.max_length for variant in variants))
    with picture(path, width=11.0, height=9.0, rows=2) as (figure, axes):
        for axis, label, value, is_more_better in (
            (axes[0], "ms for a token", lambda plan: 1e3 * plan.latency, False),
            (axes[1], "tokens per second", lambda plan: plan.tokens_per_second, True),
        ):
            points = []
            for variant in variants:
                found = [(plan.reserved, value(plan)) for plan in variant.plans]
                points += found
                shift = 1 + 0.05 * (precisions.index(variant.precision) - (len(precisions) - 1) / 2)
                _scatter(axis, found, shift, PRECISIONS[precisions.index(variant.precision)], variant, lengths)
            _draw_front(axis, front_of(points, is_more_better))
            axis.plot(chosen.reserved, value(chosen), "o", markersize=17, markerfacecolor="none", color="black")
            _label_axis(axis, label, sorted({point[0] for point in points}))
        figure.suptitle(f"{name} on {chosen.device.name}: what other replicas, stages, precisions and lengths would do")
        _legend(figure, precisions, lengths)
        note(
            figure,
            "Each point is a plan: replicas x stages, sequential or pipelined; precisions are shifted a little to the "
            "side. Times are unvalidated.",
        )


def _scatter(
    axis: Any, points: list[tuple[int, float]], shift: float, colour: str, variant: Variant, lengths: list[int]
) -> None:
    index = lengths.index(variant.max_length)
    axis.plot(
        [ipus * shift for ipus, _ in points],
        [value for _, value in points],
        MARKERS[index % len(MARKERS)],
        color=colour,
        alpha=0.55,
        markersize=6,
        markeredgewidth=0,
    )


def _draw_front(axis: Any, front: list[tuple[float, float]]) -> None:
    axis.plot([ipus for ipus, _ in front], [value for _, value in front], color="black", linewidth=1.2, zorder=0)


def _label_axis(axis: Any, label: str, ipus: list[float]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(ipus, [f"{count:.0f}" for count in ipus])
    axis.minorticks_off()
    low, high = axis.get_ylim()
    ticks = [number * 10.0**power for power in range(-4, 8) for number in (1, 2, 5)]
    kept = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(kept, [f"{tick:,g}" for tick in kept])
    axis.set_xlabel("IPUs reserved")
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)


def _legend(figure: Any, precisions: list[str], lengths: list[int]) -> None:
    from matplotlib.lines import Line2D

    def mark(colour: str, marker: str, **more: Any) -> Any:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", **more)

    handles = [mark(PRECISIONS[index], "o", label=name) for index, name in enumerate(precisions)]
    handles += [mark("#555555", MARKERS[i % len(MARKERS)], label=f"max_length {n}") for i, n in enumerate(lengths)]
    handles.append(Line2D([], [], color="black", linewidth=1.2, label="Pareto front"))
    handles.append(mark("black", "o", markersize=13, markerfacecolor="none", label="chosen plan"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
