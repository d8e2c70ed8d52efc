# SPDX-License-Identifier: Apache-2.0
"""Phases over time: they add up, never overlap on an IPU, and a token comes to the stages in order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from poptransformer.ipu.cost import host_cost
from poptransformer.ipu.device import load_device
from poptransformer.ipu.pictures import Variant, draw_gantt, draw_liveness, draw_memory, draw_sweep
from poptransformer.ipu.plan import Plan, evaluate
from poptransformer.ipu.planner import search
from poptransformer.ipu.stage import Workload, make_replica
from poptransformer.ipu.timeline import levels, timeline
from poptransformer.planning import build_model
from poptransformer.recipe import Recipe
from tests.unit.ipu.tiny import GPT2, LLAMA, config

C600 = load_device("c600")
WORKLOAD = Workload(2, 8, 64)


def plan_of(raw: dict[str, object], stages: list[int], is_pipelined: bool = False, replicas: int = 1) -> Plan:
    graph = build_model(config(raw), Recipe.of("fp16"), max_length=64).sharded(replicas)
    return evaluate(make_replica(graph, C600, WORKLOAD), stages, is_pipelined)


@pytest.mark.parametrize("raw", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("stages", [[6], [2, 4], [0, 3, 3]])
def test_a_token_takes_the_plans_latency(raw: dict[str, object], stages: list[int]) -> None:
    plan = plan_of(raw, stages)
    phases = timeline(plan)
    assert max(phase.start + phase.duration for phase in phases) == pytest.approx(plan.latency)
    for kind, cycles in plan.token.parts().items():
        assert sum(p.duration for p in phases if p.kind == kind) == pytest.approx(C600.seconds(cycles))


@pytest.mark.parametrize("raw", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_prompt_takes_the_plans_time_but_for_the_upload(raw: dict[str, object]) -> None:
    plan = plan_of(raw, [2, 4])
    upload = host_cost(C600, 4 * WORKLOAD.batch * WORKLOAD.prompt_tokens).total
    end = max(phase.start + phase.duration for phase in timeline(plan, of_prompt=True))
    assert end == pytest.approx(C600.seconds(plan.prompt.total - upload))


@pytest.mark.parametrize("raw", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_pipeline_overlaps_batches_but_no_phases_of_a_stage(raw: dict[str, object]) -> None:
    plan = plan_of(raw, [2, 2, 2], is_pipelined=True)
    phases = timeline(plan)
    for stage in range(3):
        own = sorted((p.start, p.start + p.duration) for p in phases if p.stage == stage)
        assert all(after[0] >= before[1] - 1e-15 for before, after in zip(own, own[1:], strict=False))
    end = max(phase.start + phase.duration for phase in phases)
    assert plan.latency < end < 3 * plan.latency
    assert {phase.batch for phase in phases} == {0, 1, 2}


def test_memory_over_time_never_exceeds_the_stage() -> None:
    plan = plan_of(LLAMA, [3, 3])
    for stage in plan.stages:
        found = levels(plan, stage, plan.replica.token)
        assert max(sum(level.bytes.values()) for level in found) <= stage.bytes + 1e-6
    prompt = plan.replica.token
    assert levels(plan, plan.stages[0], prompt)[0].segment == "embedding"


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("stages", "is_pipelined", "replicas"), [([6], False, 1), ([2, 4], True, 3), ([0, 6], False, 1)]
)
def test_pictures_of_a_plan(tmp_path: Path, stages: list[int], is_pipelined: bool, replicas: int) -> None:
    plan = plan_of(LLAMA, stages, is_pipelined, replicas)
    draw_memory(tmp_path / "memory.png", plan, "small")
    draw_liveness(tmp_path / "liveness.png", plan, "small")
    draw_gantt(tmp_path / "timeline.png", plan, "small")
    assert all(is_picture(path) for path in tmp_path.iterdir())


def test_picture_of_a_sweep(tmp_path: Path) -> None:
    device = dataclasses.replace(C600, tiles=16, tile_bytes=30_000, code_bytes=64, code_bytes_per_op=8)
    graphs = build_model(config(LLAMA), Recipe.of("fp16"), max_length=64).sharded
    found = search(graphs, device, WORKLOAD)
    variants = [Variant("fp16", 64, found.plans), Variant("fp8", 64, ())]
    draw_sweep(tmp_path / "sweep.png", variants, found.best("latency"), "small")
    assert is_picture(tmp_path / "sweep.png")
