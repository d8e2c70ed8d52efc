# SPDX-License-Identifier: Apache-2.0
"""What if: other replicas, stages, precisions and lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poptransformer.ipu.pictures.style import BEHIND_TEXT, PRECISIONS, note, picture
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


@dataclasses.dataclass(frozen=True)
class Point:
    """A plan in the picture.

    Attributes:
        x: place on the axis of IPUs.
        y: what is shown of it.
        variant: its precision and length.
        plan: the plan.
    """

    x: float
    y: float
    variant: Variant
    plan: Plan

    @property
    def label(self) -> str:
        """Replicas, stages and precision."""
        return f"{self.plan.replicas}x{len(self.plan.stages)} {self.variant.precision}"


def front_of(points: Sequence[Point], is_more_better: bool) -> list[Point]:
    """The points that no other with as few IPUs beats, in order."""
    front: list[Point] = []
    sign = -1 if is_more_better else 1
    for point in sorted(points, key=lambda point: (point.plan.reserved, sign * point.y)):
        if not front or sign * point.y < sign * front[-1].y:
            front.append(point)
    return front


def draw_sweep(path: Path, variants: Sequence[Variant], chosen: Plan, name: str) -> None:
    """Draws latency and throughput of all plans over the IPUs that they reserve, and both fronts."""
    precisions = list(dict.fromkeys(variant.precision for variant in variants if variant.plans))
    too_large = sorted({variant.precision for variant in variants} - set(precisions))
    lengths = list(dict.fromkeys(variant.max_length for variant in variants))
    ipus = sorted({plan.reserved for variant in variants for plan in variant.plans} | {chosen.reserved})
    with picture(path, width=12.0, height=9.0, ratios=(1, 1)) as (figure, axes):
        for axis, label, value, is_more_better in (
            (axes[0], "ms for a token", lambda plan: 1e3 * plan.latency, False),
            (axes[1], "tokens per second", lambda plan: plan.tokens_per_second, True),
        ):

            def place(plan: Plan, precision: str) -> float:
                shift = precisions.index(precision) - (len(precisions) - 1) / 2
                return ipus.index(plan.reserved) + 0.16 * shift

            points = [
                Point(place(plan, variant.precision), value(plan), variant, plan)
                for variant in variants
                for plan in variant.plans
            ]
            _scatter(axis, points, precisions, lengths)
            _draw_front(axis, front_of(points, is_more_better))
            own = place(chosen, precisions[0]), value(chosen)
            axis.plot(*own, "o", markersize=19, markerfacecolor="none", color="black")
            _label_axis(axis, label, ipus, [point.y for point in points])
        figure.suptitle(
            f"{name} on {chosen.device.name}:\nwhat other replicas, stages, precisions and lengths would do",
            x=0.01,
            ha="left",
        )
        _legend(figure, precisions, lengths)
        words = "Each point is a plan. Labels on the front: replicas x stages, precision. Times are unvalidated."
        note(figure, words + (f" What does not fit: {', '.join(too_large)}." if too_large else ""))


def _scatter(axis: Any, points: Sequence[Point], precisions: list[str], lengths: list[int]) -> None:
    """Pipelines are filled, sequential plans hollow; longer ones are larger."""
    for point in points:
        colour = PRECISIONS[precisions.index(point.variant.precision) % len(PRECISIONS)]
        index = lengths.index(point.variant.max_length)
        fill = colour if point.plan.is_pipelined else "none"
        style = {"markersize": 5 + 2.5 * index, "markerfacecolor": fill, "markeredgecolor": colour, "alpha": 0.7}
        axis.plot(point.x, point.y, MARKERS[index % len(MARKERS)], **style)


def _draw_front(axis: Any, front: list[Point]) -> None:
    axis.plot([point.x for point in front], [point.y for point in front], color="black", linewidth=1.2, zorder=0)
    for point in front:
        style = {"textcoords": "offset points", "fontsize": 9, "va": "bottom", "ha": "center", "bbox": BEHIND_TEXT}
        axis.annotate(point.label, (point.x, point.y), xytext=(0, 11), **style)


def _label_axis(axis: Any, label: str, ipus: list[int], values: list[float]) -> None:
    axis.set_xlim(-0.5, len(ipus) - 0.3)
    axis.set_xticks(range(len(ipus)), [str(count) for count in ipus])
    if max(values) > 3 * min(values):
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.set_ylim(min(values) / 1.4, max(values) * 1.8)
        low, high = axis.get_ylim()
        ticks = [number * 10.0**power for power in range(-4, 8) for number in (1, 2, 5)]
        kept = [tick for tick in ticks if low <= tick <= high]
        axis.set_yticks(kept, [f"{tick:,g}" for tick in kept])
    else:
        axis.set_ylim(0, 1.25 * max(values))
    axis.set_xlabel("IPUs reserved")
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)


def _legend(figure: Any, precisions: list[str], lengths: list[int]) -> None:
    from matplotlib.lines import Line2D

    def mark(colour: str, marker: str, **more: Any) -> Any:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", **more)

    handles = [mark(PRECISIONS[index], "o", label=name) for index, name in enumerate(precisions)]
    handles += [mark("#555555", MARKERS[i % len(MARKERS)], label=f"max_length {n}") for i, n in enumerate(lengths)]
    handles.append(mark("#555555", "o", label="pipelined"))
    handles.append(mark("#555555", "o", markerfacecolor="none", label="one stage after the other"))
    handles.append(Line2D([], [], color="black", linewidth=1.2, label="Pareto front"))
    handles.append(mark("black", "o", markersize=13, markerfacecolor="none", label="chosen plan"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
