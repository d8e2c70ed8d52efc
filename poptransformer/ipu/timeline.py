# SPDX-License-Identifier: Apache-2.0
"""When each IPU does what: phases of bulk-synchronous steps over time."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator

from poptransformer.ipu.cost import cost
from poptransformer.ipu.cycles import Cycles
from poptransformer.ipu.memory import liveness
from poptransformer.ipu.plan import Plan, Stage
from poptransformer.ipu.segments import Segment, Segments


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of time on the IPUs of one stage.

    Attributes:
        stage: number of the stage.
        batch: which of the batches in flight.
        kind: `compute`, `exchange`, `sync` or `link`.
        start: seconds from the start of the step.
        duration: seconds.
        name: node or segment.
    """

    stage: int
    batch: int
    kind: str
    start: float
    duration: float
    name: str


def segments_of(plan: Plan, stage: Stage, step: Segments | None = None) -> list[Segment]:
    """Returns the segments on a stage, in the order that they run; of a token's step unless told otherwise."""
    step = step or plan.replica.token
    found = list(step.blocks[stage.first : stage.first + stage.blocks])
    if stage.has_embedding:
        found.insert(0, step.before)
    if stage.has_head:
        found.append(step.after)
    return found


def timeline(plan: Plan, of_prompt: bool = False) -> list[Phase]:
    """Returns the phases of one token, node by node; for a pipeline, of one token of each batch in flight.

    A stage takes what comes first. A tied head runs on the first stage when the last one is done.

    Args:
        plan: the plan.
        of_prompt: the phases of a prompt's step in place of a token's.
    """
    visits = _visits(plan, plan.replica.prompt if of_prompt else plan.replica.token)
    free = [0.0] * len(plan.stages)
    waiting = [(0.0, batch, 0) for batch in range(len(plan.stages) if plan.is_pipelined else 1)]
    phases: list[Phase] = []
    while waiting:
        ready, batch, visit = heapq.heappop(waiting)
        stage, parts = visits[visit]
        own = list(_phases(plan, stage, batch, max(ready, free[stage]), parts))
        phases += own
        free[stage] = own[-1].start + own[-1].duration if own else ready
        if visit + 1 < len(visits):
            heapq.heappush(waiting, (free[stage], batch, visit + 1))
    return phases


def _phases(plan: Plan, stage: int, batch: int, start: float, parts: list[tuple[str, Cycles]]) -> Iterator[Phase]:
    """Nodes one after the other; of each, a tile waits, receives, then computes."""
    for name, cycles in parts:
        for kind in ("sync", "exchange", "compute", "link"):
            duration = plan.device.seconds(getattr(cycles, kind))
            if duration:
                yield Phase(stage, batch, kind, start, duration, name)
                start += duration


def _visits(plan: Plan, step: Segments) -> list[tuple[int, list[tuple[str, Cycles]]]]:
    """The stages that a token comes to, with the cycles of each node and of the way on."""
    visits = []
    head: list[tuple[str, Cycles]] = []
    for stage in plan.stages:
        parts: list[tuple[str, Cycles]] = []
        for segment in segments_of(plan, stage, step):
            costs = [(op.name, cost(plan.device, op.work, plan.replica.numbers)) for op in segment.ops if op.work]
            is_later = segment is step.after and stage.index == 0 and len(plan.stages) > 1
            (head if is_later else parts).extend(costs)
        if len(plan.stages) > 1:
            hop = stage.prompt_hop if step is plan.replica.prompt else stage.hop
            parts.append(("to the next stage", hop))
        visits.append((stage.index, parts))
    return [*visits, (0, head)] if head else visits


@dataclasses.dataclass(frozen=True)
class Level:
    """Memory of the fullest tile of a stage while one node runs.

    Attributes:
        name: the node.
        segment: what it is part of.
        bytes: category -> bytes.
    """

    name: str
    segment: str
    bytes: dict[str, float]


def levels(plan: Plan, stage: Stage, step: Segments) -> list[Level]:
    """Returns what a stage's fullest tile holds through a step, node by node.

    Args:
        plan: the plan.
        stage: one of its stages.
        step: the segments of a prompt's or a token's step.
    """
    found = []
    for segment in segments_of(plan, stage, step):
        for moment in liveness(plan.device, segment, plan.replica.numbers):
            bytes_ = {**stage.memory, "activations": moment.activations, "partials": moment.partials}
            found.append(Level(moment.name, segment.name, bytes_))
    return found
