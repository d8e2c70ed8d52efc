# SPDX-License-Identifier: Apache-2.0
"""The planner against brute force, and what it says."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator

import pytest

from poptransformer.errors import ConfigError
from poptransformer.ipu.device import Device, load_device
from poptransformer.ipu.divide import Division, bottleneck
from poptransformer.ipu.plan import Plan, evaluate
from poptransformer.ipu.planner import Search, fixed_stages, search
from poptransformer.ipu.segments import Segment
from poptransformer.ipu.stage import Replica, Workload
from poptransformer.placement import balanced
from poptransformer.planning import build_model
from poptransformer.recipe import Recipe
from tests.unit.ipu import works
from tests.unit.ipu.tiny import GPT2, LLAMA, config

C600 = load_device("c600")


def random_replica(seed: int, is_tied: bool) -> Replica:
    """Seven blocks of different sizes on an IPU that holds a few of them."""
    dice = random.Random(seed)
    device = dataclasses.replace(C600, tile_bytes=26_000, code_bytes=1000, code_bytes_per_op=10)
    blocks = [
        works.layer(f"block {i}", [(dice.choice([512, 1024, 2048]), dice.choice([512, 1024, 2048]))] * 2, 64, 256)
        for i in range(7)
    ]
    table = works.layer("table", [(4096, 512)])
    head = table if is_tied else works.layer("head", [(4096, 512)])
    return works.replica_of(device, table, blocks, Segment("head", head.ops), is_tied)


def all_divisions(replica: Replica, stages: int, is_pipelined: bool) -> Iterator[Plan]:
    """Every way to cut the blocks, the embedding or an untied head on stages of their own included."""
    blocks = len(replica.blocks)
    for counts in itertools.product(range(blocks + 1), repeat=stages):
        if sum(counts) != blocks:
            continue
        inner = counts[1:] if replica.is_tied else counts[1:-1]
        if stages > 1 and 0 in inner:
            continue
        plan = evaluate(replica, list(counts), is_pipelined)
        if all(stage.bytes <= replica.device.tile_bytes for stage in plan.stages):
            yield plan


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_sequential_stages_equal_brute_force(seed: int, is_tied: bool, stages: int) -> None:
    replica = random_replica(seed, is_tied)
    found = Division(replica).divide(stages)
    others = list(all_divisions(replica, stages, is_pipelined=False))
    assert (found is None) == (not others)
    if found is not None:
        assert found.worst.bytes == min(plan.worst.bytes for plan in others)
        assert found.latency == pytest.approx(min(plan.latency for plan in others))


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_pipelines_equal_brute_force(seed: int, is_tied: bool, stages: int) -> None:
    replica = random_replica(seed, is_tied)
    found = Division(replica).divide(stages, is_pipelined=True)
    others = list(all_divisions(replica, stages, is_pipelined=True))
    assert (found is None) == (not others)
    if found is not None:
        fastest = min(plan.interval for plan in others)
        assert found.interval == pytest.approx(fastest)
        fast = [plan for plan in others if plan.interval <= fastest * (1 + 1e-9)]
        assert found.worst.bytes == min(plan.worst.bytes for plan in fast)


def test_the_cases_above_are_not_empty() -> None:
    """Some divisions fit and some do not, or the comparison would prove nothing."""
    results = [Division(random_replica(seed, False)).divide(stages) for seed in range(4) for stages in range(1, 6)]
    assert any(plan is None for plan in results)
    assert sum(plan is not None for plan in results) >= 4


def test_bottleneck_of_nothing_possible() -> None:
    import numpy as np

    assert bottleneck([np.full((3, 3), np.inf)] * 2) is None


GRAPHS = build_model(config(LLAMA), Recipe.of("fp16"), max_length=64).sharded
WORKLOAD = Workload(1, 8, 64)


def small(tile_bytes: int) -> Device:
    """An IPU of few and small tiles, so that small models need several."""
    return dataclasses.replace(C600, tiles=16, tile_bytes=tile_bytes, code_bytes=64, code_bytes_per_op=8)


def test_each_objective_finds_its_best() -> None:
    found = search(GRAPHS, small(30_000), WORKLOAD)
    assert len(found.plans) > 3
    assert found.best("latency").latency == min(plan.latency for plan in found.plans)
    assert found.best("throughput").tokens_per_second == max(plan.tokens_per_second for plan in found.plans)
    assert found.best("ipus").reserved == min(plan.reserved for plan in found.plans)
    for plan in found.plans:
        assert plan.fits
        assert sum(plan.layer_per_ipu) == 6


def test_nothing_beats_the_front() -> None:
    found = search(GRAPHS, small(30_000), WORKLOAD)
    for one in found.front:
        for other in found.plans:
            is_better = (
                other.reserved <= one.reserved
                and other.latency < one.latency
                and other.tokens_per_second > one.tokens_per_second
            )
            assert not is_better


def test_more_memory_never_needs_more_ipus() -> None:
    sizes = [20_000, 30_000, 60_000, 200_000]
    needed = [search(GRAPHS, small(size), WORKLOAD).best("ipus").reserved for size in sizes]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] == 1


def test_replicas_that_do_not_divide_the_heads_are_named() -> None:
    found = search(GRAPHS, C600, WORKLOAD)  # 6 heads, 3 of keys and values
    layer = "(model.layers.0.self_attn)"
    assert found.rejected[4] == f"num_replicas=4 does not divide 6 heads; valid: 1, 3, 6; power of two: 1 {layer}"
    assert found.rejected[2] == (
        "num_replicas=2 neither divides 3 key/value heads nor is a multiple of them; valid: 1, 3, 6; power of two: 1 "
        f"{layer}"
    )
    assert {plan.replicas for plan in found.plans} == {1}


def test_limits() -> None:
    assert {plan.reserved for plan in search(GRAPHS, small(30_000), WORKLOAD, max_ipus=2).plans} <= {1, 2}
    assert search(GRAPHS, small(3000), WORKLOAD).plans == ()
    with pytest.raises(ConfigError):
        Search((), {}).best("latency")


def test_fixed_stages_try_replicas() -> None:
    found = fixed_stages(GRAPHS, C600, WORKLOAD, [3, 3], [1, 3, 4])
    assert [plan.replicas for plan in found.plans] == [1, 3]
    assert list(found.rejected) == [4]


def test_a_tied_head_is_on_the_first_stage() -> None:
    graphs = build_model(config(GPT2), Recipe.of("fp16"), max_length=64).sharded
    found = search(graphs, small(30_000), WORKLOAD)
    plan = next(plan for plan in found.plans if len(plan.stages) > 1)
    assert plan.stages[0].has_head and plan.stages[0].has_embedding
    assert not plan.stages[-1].has_head
    assert plan.stages[-1].blocks


@pytest.mark.parametrize(
    ("given", "layers", "expected"),
    [
        ([0, 6, 7, 7, 7, 7, 7, 6], 48, "[0,6,7,7,7,7,7,7]"),
        ([5, 5], 12, "[6,6]"),
        ([0, 1, 1, 0], 5, "[0,2,3,0]"),
        ([0, 0], 4, "[2,2]"),
        ([], 4, "[4]"),
    ],
)
def test_wrong_sums_are_answered(given: list[int], layers: int, expected: str) -> None:
    assert balanced(given, layers) == expected


def test_the_seeds_wrong_sum() -> None:
    replica = works.replica_of(C600, Segment("e", ()), [works.layer("0", [(16, 16)])] * 48, Segment("h", ()))
    with pytest.raises(ConfigError) as error:
        evaluate(replica, [0, 6, 7, 7, 7, 7, 7, 6])
    assert str(error.value) == "layer_per_ipu sums to 47, model has 48 layers; try [0,6,7,7,7,7,7,7]"
