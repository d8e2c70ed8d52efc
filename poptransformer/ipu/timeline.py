# SPDX-License-Identifier: Apache-2.0
"""When each IPU does what: phases of bulk-synchronous steps over time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from poptransformer.ipu.cost import cost
from poptransformer.ipu.cycles import KINDS, Cycles
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
    """Returns the segments on a stage, in the order that they run."""
    step = step or plan.replica.token
    found = list(step.blocks[stage.first : stage.first + stage.blocks])
    if stage.has_embedding:
        found.insert(0, step.before)
    if stage.has_head:
        found.append(step.after)
    return found


def timeline(plan: Plan) -> list[Phase]:
    """Returns the phases of one token, node by node; for a pipeline, of one token of each batch in flight.

    A tied head runs on the first stage when the last one is done.
    """
    batches = len(plan.stages) if plan.is_pipelined else 1
    free = [0.0] * len(plan.stages)
    phases: list[Phase] = []
    for batch in range(batches):
        now = 0.0
        for index, parts in _visits(plan):
            now = max(now, free[index])
            for name, cycles in parts:
                for kind in ("sync", "exchange", "compute", "link"):  # of a step: wait, exchange, compute
                    duration = plan.device.seconds(getattr(cycles, kind))
                    if duration:
                        phases.append(Phase(index, batch, kind, now, duration, name))
                        now += duration
            free[index] = now
    return phases


def _visits(plan: Plan) -> Iterator[tuple[int, list[tuple[str, Cycles]]]]:
    """The stages that a token comes to, with the cycles of each node and of the way on."""
    head: list[tuple[str, Cycles]] = []
    for stage in plan.stages:
        parts = []
        for segment in segments_of(plan, stage):
            costs = [(op.name, cost(plan.device, op.work, plan.replica.numbers)) for op in segment.ops if op.work]
            is_later = segment is plan.replica.token.after and stage.index == 0 and len(plan.stages) > 1
            (head if is_later else parts).extend(costs)
        if len(plan.stages) > 1:
            parts.append(("to the next stage", stage.hop))
        yield stage.index, parts
    if head:
        yield 0, head


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


def by_kind(phases: list[Phase], stages: int) -> list[dict[str, float]]:
    """Returns seconds by kind for each stage."""
    sums = [dict.fromkeys(KINDS, 0.0) for _ in range(stages)]
    for phase in phases:
        sums[phase.stage][phase.kind] += phase.duration
    return sums
