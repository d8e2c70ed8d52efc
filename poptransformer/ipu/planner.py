# SPDX-License-Identifier: Apache-2.0
"""The planner: an exact search over stages and replicas under the tiles' memory.

For each number of replicas and stages, dynamic programming over contiguous blocks finds the division whose worst stage
is best: the fastest slowest stage for a pipeline, and among equally fast ones the one with the emptiest fullest tile.
Without a pipeline all divisions into as many stages take the same time, so the fullest tile alone decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from poptransformer.errors import ConfigError
from poptransformer.ipu.device import Device
from poptransformer.ipu.divide import Division
from poptransformer.ipu.plan import Plan, evaluate
from poptransformer.ipu.segments import ShardedGraphs, StepGraph
from poptransformer.ipu.stage import Replica, Workload, make_replica

OBJECTIVES = ("latency", "throughput", "ipus")
TIGHT = 0.05  # the part of a tile that temporaries get where the device's own proportion does not fit


@dataclasses.dataclass(frozen=True)
class Search:
    """What the planner found.

    Attributes:
        plans: the best plan for each number of replicas and stages, as sequential stages and as a pipeline.
        rejected: numbers of replicas that cannot be, and why.
    """

    plans: tuple[Plan, ...]
    rejected: dict[int, str]

    def best(self, objective: str) -> Plan:
        """Returns the plan for an objective: `latency`, `throughput` or `ipus`.

        Raises:
            ConfigError: no plan fits.
        """
        if not self.plans:
            raise ConfigError("No plan fits; see poptransformer.ipu.checks.explain_failure.")
        keys: dict[str, Callable[[Plan], tuple[float, ...]]] = {
            "latency": lambda plan: (plan.latency, plan.reserved, plan.is_pipelined),
            "throughput": lambda plan: (-plan.tokens_per_second, plan.reserved, plan.latency),
            "ipus": lambda plan: (plan.reserved, plan.ipus, plan.latency, plan.is_pipelined),
        }
        return min(self.plans, key=keys[objective])

    @property
    def front(self) -> tuple[Plan, ...]:
        """Plans that no other beats in IPUs, latency and throughput at once, fewest IPUs first."""
        ordered = sorted(self.plans, key=lambda plan: (plan.reserved, plan.latency, -plan.tokens_per_second))
        front: list[Plan] = []
        for plan in ordered:
            if not any(_beats(other, plan) for other in front):
                front.append(plan)
        return tuple(front)


def _beats(one: Plan, other: Plan) -> bool:
    """Whether one is nowhere worse; equal ones beat each other."""
    is_faster = one.latency <= other.latency and one.tokens_per_second >= other.tokens_per_second
    return one.reserved <= other.reserved and is_faster


def search(
    graphs: ShardedGraphs,
    device: Device,
    workload: Workload,
    replicas: Iterable[int] | None = None,
    max_ipus: int | None = None,
) -> Search:
    """Finds the best plans for a model.

    Args:
        graphs: the model.
        device: the IPU.
        workload: what is run.
        replicas: numbers of replicas to try; powers of two up to the machine's size by default.
        max_ipus: IPUs that may be reserved; the device's own limit by default.
    """
    limit = min(max_ipus or device.max_ipus, device.max_ipus)
    counts = replicas or powers_of_two(limit)
    return _tried(graphs, device, workload, counts, lambda variants, count: plans_of(variants, limit // count))


def fixed_stages(
    graphs: ShardedGraphs, device: Device, workload: Workload, layer_per_ipu: Sequence[int], replicas: Iterable[int]
) -> Search:
    """Costs given stages for several numbers of replicas; what does not fit is left out."""

    def first_that_fits(variants: Sequence[Replica], count: int) -> list[Plan]:
        return [plan for plan in (evaluate(replica, layer_per_ipu) for replica in variants) if plan.fits][:1]

    return _tried(graphs, device, workload, replicas, first_that_fits)


def _tried(
    graphs: ShardedGraphs,
    device: Device,
    workload: Workload,
    replicas: Iterable[int],
    plans_for: Callable[[Sequence[Replica], int], list[Plan]],
) -> Search:
    """Collects the plans for several numbers of replicas, and why some numbers cannot be."""
    rejected: dict[int, str] = {}
    plans: list[Plan] = []
    for count in replicas:
        try:
            variants = replica_variants(graphs(count), device, workload)
        except ConfigError as error:
            rejected[count] = str(error)
        else:
            plans += plans_for(variants, count)
    return Search(tuple(plans), rejected)


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [1 << shift for shift in range(limit.bit_length()) if 1 << shift <= limit]


def replica_variants(graph: StepGraph, device: Device, workload: Workload) -> list[Replica]:
    """The model with temporaries as large as the device allows, and with small ones, which cost some time."""
    proportions = dict.fromkeys((device.memory_proportion, min(TIGHT, device.memory_proportion)))
    return [
        make_replica(graph, dataclasses.replace(device, memory_proportion=proportion), workload)
        for proportion in proportions
    ]


def plans_of(variants: Sequence[Replica], most_stages: int) -> list[Plan]:
    """Returns, for each number of stages, the best sequential plan and the best pipeline that fit."""
    divisions = [Division(replica) for replica in variants]
    found = []
    for stages in range(1, min(most_stages, len(variants[0].blocks) + 2) + 1):
        for is_pipelined in (False, True)[: min(stages, 2)]:
            options = [division.divide(stages, is_pipelined) for division in divisions]
            plans = [plan for plan in options if plan is not None and plan.reserved <= plan.device.max_ipus]
            if plans:
                found.append(min(plans, key=lambda plan: plan.interval if plan.is_pipelined else plan.latency))
    return found
