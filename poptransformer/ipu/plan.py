# SPDX-License-Identifier: Apache-2.0
"""A plan: which blocks lie on which IPU, what each stage needs, and how long a prompt and a token take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from poptransformer.ipu.cost import hop_cost, host_cost
from poptransformer.ipu.cycles import FREE, Cycles, total
from poptransformer.ipu.device import Device
from poptransformer.ipu.memory import Moment
from poptransformer.ipu.stage import Replica, Unit, join
from poptransformer.placement import check_sum

TOKEN_BYTES = 4  # an id on its way to the next step


@dataclasses.dataclass(frozen=True)
class Stage:
    """One IPU of each replica.

    Attributes:
        index: number of the stage.
        first: its first block.
        blocks: how many it has.
        has_embedding: whether the embedding is here.
        has_head: whether the head is here.
        token: cycles for a token, without the way to the next stage.
        prompt: cycles for a prompt.
        hop: cycles on the link to the next stage for a token.
        prompt_hop: the same for a prompt.
        memory: category -> bytes on the fullest tile.
        peak: the moment with most bytes that come and go.
        weight_bytes: parameters on the IPU.
    """

    index: int
    first: int
    blocks: int
    has_embedding: bool
    has_head: bool
    token: Cycles
    prompt: Cycles
    hop: Cycles
    prompt_hop: Cycles
    memory: dict[str, float]
    peak: Moment
    weight_bytes: int

    @property
    def bytes(self) -> float:
        """Bytes on the fullest tile."""
        return sum(self.memory.values())

    @property
    def content(self) -> str:
        """What lies here, in words."""
        parts = ["embedding"] if self.has_embedding else []
        if self.blocks == 1:
            parts.append(f"block {self.first}")
        elif self.blocks:
            parts.append(f"blocks {self.first} to {self.first + self.blocks - 1}")
        return ", ".join(parts + (["head"] if self.has_head else []))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Stages and replicas, costed.

    Attributes:
        replica: the model that is divided.
        stages: one IPU of each replica for every stage.
        is_pipelined: whether stages work on different batches at a time, one for each stage.
    """

    replica: Replica
    stages: tuple[Stage, ...]
    is_pipelined: bool = False

    @property
    def device(self) -> Device:
        """The IPU."""
        return self.replica.device

    @property
    def replicas(self) -> int:
        """Tensor-parallel replicas."""
        return self.replica.replicas

    @property
    def layer_per_ipu(self) -> list[int]:
        """Blocks of each stage: the value of `model.layer_per_ipu`."""
        return [stage.blocks for stage in self.stages]

    @property
    def ipus(self) -> int:
        """IPUs that work."""
        return len(self.stages) * self.replicas

    @property
    def reserved(self) -> int:
        """IPUs that the hardware sets apart: the next power of two."""
        return 1 << (self.ipus - 1).bit_length()

    @property
    def worst(self) -> Stage:
        """The stage with the fullest tile."""
        return max(self.stages, key=lambda stage: stage.bytes)

    @property
    def fits(self) -> bool:
        """Whether every tile holds what it must, and the IPUs can be linked."""
        return self.worst.bytes <= self.device.tile_bytes and self.reserved <= self.device.max_ipus

    @property
    def token(self) -> Cycles:
        """Cycles for a token: all stages, one after the other, and the ways between them."""
        return total(stage.token + stage.hop for stage in self.stages)

    @property
    def prompt(self) -> Cycles:
        """Cycles for a prompt, upload included."""
        workload = self.replica.workload
        upload = host_cost(self.device, TOKEN_BYTES * workload.batch * workload.prompt_tokens)
        return total(stage.prompt + stage.prompt_hop for stage in self.stages) + upload

    @property
    def latency(self) -> float:
        """Seconds for a token."""
        return self.device.seconds(self.token.total)

    @property
    def interval(self) -> float:
        """Seconds between the tokens of a pipeline: its slowest stage."""
        return self.device.seconds(max((stage.token + stage.hop).total for stage in self.stages))

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all rows per second."""
        batch = self.replica.workload.batch
        return batch / self.interval if self.is_pipelined else batch / self.latency

    @property
    def bubble(self) -> float:
        """The part of a prompt's pass that stages of a pipeline wait: (S-1)/(M+S-1), with as many batches as stages."""
        stages = len(self.stages)
        return (stages - 1) / (2 * stages - 1) if self.is_pipelined else (stages - 1) / stages


def evaluate(replica: Replica, layer_per_ipu: Sequence[int], is_pipelined: bool = False) -> Plan:
    """Costs a division into stages.

    Args:
        replica: the model.
        layer_per_ipu: blocks of each stage, in order.
        is_pipelined: whether stages work on different batches at a time.

    Raises:
        ConfigError: the numbers do not add up to the model's blocks.
    """
    check_sum(layer_per_ipu, len(replica.blocks))
    stages, first = [], 0
    for index, count in enumerate(layer_per_ipu):
        stages.append(_stage(replica, index, len(layer_per_ipu), first, count, is_pipelined))
        first += count
    return Plan(replica, tuple(stages), is_pipelined)


def units_of(replica: Replica, index: int, stages: int, first: int, count: int) -> list[Unit]:
    """What lies on stage `index`: a tied head where its table is, any other one on the last stage."""
    units = list(replica.blocks[first : first + count])
    if index == 0:
        units.insert(0, replica.before)
        if replica.is_tied:
            units.append(replica.tied_after)
    if index == stages - 1 and not replica.is_tied:
        units.append(replica.after)
    return units


def hops_of(replica: Replica, index: int, stages: int) -> tuple[Cycles, Cycles]:
    """The way to the next stage, for a token and a prompt; from the last one back to the first."""
    if stages == 1:
        return FREE, FREE
    token, prompt = replica.hidden_bytes
    if index == stages - 1:  # a tied head wants the hidden states of the last tokens, any other one sends ids
        chosen = token if replica.is_tied else TOKEN_BYTES * replica.workload.batch
        token = prompt = chosen
    return hop_cost(replica.device, token), hop_cost(replica.device, prompt)


def _stage(replica: Replica, index: int, stages: int, first: int, count: int, is_pipelined: bool) -> Stage:
    token, prompt, needs = join(units_of(replica, index, stages, first, count))
    hop, prompt_hop = hops_of(replica, index, stages)
    return Stage(
        index=index,
        first=first,
        blocks=count,
        has_embedding=index == 0,
        has_head=index == (0 if replica.is_tied else stages - 1),
        token=token,
        prompt=prompt,
        hop=hop,
        prompt_hop=prompt_hop,
        memory=needs.bytes_per_tile(replica.device, stages if is_pipelined else 1),
        peak=needs.peak,
        weight_bytes=needs.weight_bytes,
    )
