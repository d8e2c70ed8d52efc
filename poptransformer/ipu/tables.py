# SPDX-License-Identifier: Apache-2.0
"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from poptransformer.ipu.cost import cost
from poptransformer.ipu.explain import milliseconds
from poptransformer.ipu.memory import CATEGORIES
from poptransformer.ipu.plan import Plan, Stage
from poptransformer.ipu.planner import Search
from poptransformer.ipu.timeline import segments_of

KIB = 1024
SHORTEN_FROM = 14  # stages; longer tables show those that differ


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table with some columns of words and some of numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def stage_table(plan: Plan, title: str) -> Table:
    """Returns one row for each stage: what lies there, KiB of the fullest tile by category, time of a token."""
    limit = plan.device.tile_bytes / KIB
    title = f"{title}: KiB on the fullest tile, of {limit:,.0f}"
    short = ("weights", "KV", "activ.", "partials", "code")
    table = _table(title, ("stage", "holds"), (*short, "full", "token", "bound by"))
    for first, last in _ranges(plan.stages):
        _add_stages(table, plan, first, last)
    return table


def _ranges(stages: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """Stages one by one, or runs of alike ones where there are many."""
    ranges: list[tuple[Stage, Stage]] = []
    for stage in stages:
        is_alike = bool(ranges) and ranges[-1][1].memory == stage.memory and ranges[-1][1].blocks == stage.blocks
        if is_alike and len(stages) >= SHORTEN_FROM:
            ranges[-1] = (ranges[-1][0], stage)
        else:
            ranges.append((stage, stage))
    return ranges


def _add_stages(table: Table, plan: Plan, first: Stage, last: Stage) -> None:
    limit = plan.device.tile_bytes
    number = str(first.index) if first is last else f"{first.index} to {last.index}"
    holds = first.content if first is last else f"{first.blocks} block{'s' if first.blocks > 1 else ''} each"
    share = f"{first.bytes / limit:.0%}"
    colour = "red" if first.bytes > limit else "yellow" if first.bytes > 0.9 * limit else "green"
    time = milliseconds(plan.device.seconds((first.token + first.hop).total))
    numbers = [f"{first.memory[category] / KIB:,.1f}" for category in CATEGORIES]
    table.add_row(number, holds, *numbers, f"[{colour}]{share}[/]", time, (first.token + first.hop).bound)


def front_table(found: Search, chosen: Plan, own: Plan | None = None, most: int = 12) -> Table:
    """Returns the Pareto front: plans that no other beats in IPUs, latency and throughput at once.

    Args:
        found: all plans.
        chosen: the plan that is marked.
        own: the user's own plan, shown last.
        most: rows of the front that are shown, spread over it.
    """
    columns = ("IPUs", "of", "replicas", "stages", "pipelined", "token", "tokens/s", "prompt", "full")
    table = _table("Pareto front: IPUs (of those reserved) against latency and throughput", ("",), columns)
    shown = _spread(found.front, most)
    if chosen not in shown:
        shown = sorted([*shown, chosen], key=lambda plan: (plan.reserved, plan.latency))
    for plan in shown:
        _add_plan(table, plan, "chosen" if plan is chosen else "")
    if own is not None:
        table.add_section()
        _add_plan(table, own, "yours" if own.fits else "yours, does not fit")
    left_out = len(found.front) - min(most, len(found.front))
    table.caption = f"{left_out} more plans of the front are in plan.json" if left_out else None
    return table


def _spread(plans: Sequence[Plan], most: int) -> list[Plan]:
    """At most so many of them, first and last included."""
    if len(plans) <= most:
        return list(plans)
    return [plans[round(index * (len(plans) - 1) / (most - 1))] for index in range(most)]


def _add_plan(table: Table, plan: Plan, mark: str) -> None:
    seconds = plan.device.seconds(plan.prompt.total)
    numbers = (plan.ipus, plan.reserved, plan.replicas, len(plan.stages))
    table.add_row(
        mark,
        *map(str, numbers),
        "yes" if plan.is_pipelined else "no",
        milliseconds(plan.latency),
        f"{plan.tokens_per_second:,.0f}",
        milliseconds(seconds),
        f"{plan.worst.bytes / plan.device.tile_bytes:.0%}",
    )


def op_table(plan: Plan, most: int = 12) -> Table:
    """Returns the nodes of a typical block that take most time, with the plan each follows."""
    stage = max(plan.stages, key=lambda stage: stage.blocks)
    segments = [segment for segment in segments_of(plan, stage) if segment.name.startswith("block")]
    segment = segments[-1]
    replica = " of one replica" if plan.replicas > 1 else ""
    columns = ("compute", "exchange", "sync", "link", "total")
    table = _table(f"Cycles of a token in {segment.name}{replica}", ("node", "how"), columns)
    costs = [(op.name, cost(plan.device, op.work, plan.replica.numbers)) for op in segment.ops if op.work]
    for name, cycles in sorted(costs, key=lambda item: -item[1].total)[:most]:
        values = (*cycles.parts().values(), cycles.total)
        table.add_row(_short(name), cycles.how, *(f"{value:,.0f}" for value in values))
    return table


def _short(name: str) -> str:
    """The last parts of a node's name."""
    return "/".join(name.split("/")[-2:])


def plan_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Returns names and values side by side."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", value)
    return table
