# SPDX-License-Identifier: Apache-2.0
"""What segments cost on one IPU, for the prompt and for each token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from poptransformer.ipu.cost import cost
from poptransformer.ipu.cycles import FREE, Cycles, total
from poptransformer.ipu.device import Device
from poptransformer.ipu.memory import EMPTY, Footprint, footprint
from poptransformer.ipu.segments import Segment, Segments, StepGraph
from poptransformer.ipu.trace import Sizes
from poptransformer.ipu.work import Numbers


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is run.

    Attributes:
        batch: rows of a batch.
        prompt_tokens: tokens of each prompt, computed in one step.
        max_length: tokens of prompt and answer together; cache slots.
        attended: slots that attention reads per token: `current` counts those in use, half way through the answer,
            `max_length` all of them, as the original did.
    """

    batch: int = 1
    prompt_tokens: int = 1
    max_length: int = 128
    attended: str = "current"

    @property
    def decode_slots(self) -> int:
        """Slots that attention reads for a token."""
        if self.attended == "max_length":
            return self.max_length
        return (self.prompt_tokens + self.max_length + 1) // 2

    def prompt(self) -> Sizes:
        """Sizes of the prompt's step."""
        slots = self.max_length if self.attended == "max_length" else self.prompt_tokens
        return Sizes(self.batch, self.prompt_tokens, self.max_length, slots)

    def token(self) -> Sizes:
        """Sizes of a token's step."""
        return Sizes(self.batch, 1, self.max_length, self.decode_slots)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One segment, costed.

    Attributes:
        name: the segment's.
        token: cycles for a token.
        prompt: cycles for a prompt.
        needs: what it needs on an IPU, the larger of both steps.
    """

    name: str
    token: Cycles
    prompt: Cycles
    needs: Footprint


@dataclasses.dataclass(frozen=True)
class Replica:
    """One of the replicas of a model, costed: what the planner divides into stages.

    Attributes:
        device: the IPU.
        numbers: formats.
        workload: what is run.
        token: the segments of a token's step.
        prompt: those of a prompt's.
        before: embedding.
        blocks: decoder blocks.
        after: head, with a table of its own.
        tied_after: the same where the embedding's table is there.
        hidden_bytes: activations that go from stage to stage, for a token and for a prompt.
    """

    device: Device
    numbers: Numbers
    workload: Workload
    token: Segments
    prompt: Segments
    before: Unit
    blocks: tuple[Unit, ...]
    after: Unit
    tied_after: Unit
    hidden_bytes: tuple[int, int]

    @property
    def replicas(self) -> int:
        """Tensor-parallel replicas."""
        return self.token.replicas

    @property
    def is_tied(self) -> bool:
        """Whether the head reads the embedding's table, and so belongs to the first stage."""
        return self.token.is_tied


def make_replica(graph: StepGraph, device: Device, workload: Workload) -> Replica:
    """Costs the segments of one replica; equal blocks are costed once."""
    token = graph.segments(workload.token())
    prompt = graph.segments(workload.prompt())
    unit = functools.partial(_unit, device, graph.numbers)
    known: dict[object, Unit] = {}
    blocks = []
    for one, many in zip(token.blocks, prompt.blocks, strict=True):
        key = one.signature
        if key not in known:
            known[key] = unit(one, many)
        blocks.append(dataclasses.replace(known[key], name=one.name))
    tables = [weight.name for op in token.before.ops for weight in op.weights]
    size = graph.numbers.activation_bytes
    return Replica(
        device=device,
        numbers=graph.numbers,
        workload=workload,
        token=token,
        prompt=prompt,
        before=unit(token.before, prompt.before),
        blocks=tuple(blocks),
        after=unit(token.after, prompt.after),
        tied_after=_unit(device, graph.numbers, token.after, prompt.after, without=tables),
        hidden_bytes=(token.hidden * size, prompt.hidden * size),
    )


def _unit(device: Device, numbers: Numbers, token: Segment, prompt: Segment, without: Sequence[str] = ()) -> Unit:
    needs = footprint(device, token, numbers, without)
    larger = footprint(device, prompt, numbers, without)
    peak = max(needs.peak, larger.peak, key=lambda moment: moment.total)
    needs = dataclasses.replace(needs, peak=peak, works=needs.works | larger.works)
    return Unit(token.name, cycles_of(device, numbers, token), cycles_of(device, numbers, prompt), needs)


def cycles_of(device: Device, numbers: Numbers, segment: Segment) -> Cycles:
    """Cycles of a segment, its nodes one after the other."""
    return total(cost(device, op.work, numbers) for op in segment.ops)


def join(units: Iterable[Unit]) -> tuple[Cycles, Cycles, Footprint]:
    """Cycles for a token, for a prompt, and needs of units on one IPU."""
    token, prompt, needs = FREE, FREE, EMPTY
    for unit in units:
        token, prompt, needs = token + unit.token, prompt + unit.prompt, needs + unit.needs
    return token, prompt, needs
