# SPDX-License-Identifier: Apache-2.0
"""Each check names the key, the value and the fix."""

from __future__ import annotations

import dataclasses

import pytest

from poptransformer.errors import ConfigError
from poptransformer.ipu.checks import (
    check_device,
    check_prompt,
    explain_failure,
    problems,
    warnings,
    weights_note,
)
from poptransformer.ipu.device import load_device
from poptransformer.ipu.explain import explain, footer, short_form
from poptransformer.ipu.plan import evaluate
from poptransformer.ipu.planner import search
from poptransformer.ipu.stage import Workload, make_replica
from poptransformer.planning import build_model, find_config
from poptransformer.recipe import Recipe
from tests.unit.ipu.tiny import LLAMA, config

C600, BOW, GC200 = map(load_device, ("c600", "bow", "gc200"))
MODEL = build_model(config(LLAMA), Recipe.of("fp16"), max_length=64)
GRAPH = MODEL.graph
WORKLOAD = Workload(1, 8, 64)


def test_a_tile_over_its_limit_says_what_fills_it_and_what_helps() -> None:
    graph = build_model(find_config("gpt2-xl"), Recipe.of("fp16")).graph
    plan = evaluate(make_replica(graph, C600, Workload(1, 128, 264)), [24, 24])
    message = problems(plan, graph)[0]
    assert message.startswith(
        f"stage 0 needs {plan.stages[0].bytes:,.0f} B on its fullest tile, limit 638,976: weights "
    )
    assert "KV cache " in message and "partials " in message
    assert message.endswith("IPUs or use int4") or message.endswith("IPUs or use fp8")
    assert "add " in message


def test_the_advice_to_add_ipus_is_enough() -> None:
    graph = build_model(find_config("gpt2-xl"), Recipe.of("fp16")).graph
    replica = make_replica(graph, C600, Workload(1, 1, 264))
    plan = evaluate(replica, [0, 24, 24])
    message = problems(plan, graph)[0]
    more = int(message.split("add ")[1].split()[0])
    parts = 1 + more
    share = [24 // parts + (index < 24 % parts) for index in range(parts)]
    assert evaluate(replica, [0, *share, *share]).fits


def test_one_more_ipu_is_one_ipu() -> None:
    device = dataclasses.replace(C600, tiles=16, tile_bytes=60_000, code_bytes=64, code_bytes_per_op=8)
    replica = make_replica(GRAPH, device, WORKLOAD)
    told = [
        line
        for layers in ([0, 6, 0], [0, 4, 2, 0], [0, 5, 1, 0])
        for line in problems(evaluate(replica, layers), GRAPH)
    ]
    assert any("add 1 IPU or" in line or line.endswith("add 1 IPU") for line in told), told
    assert not any("add 1 IPUs" in line for line in told)


def test_one_block_that_is_too_large_wants_replicas() -> None:
    graph = build_model(find_config("meta-llama/Llama-2-70b-hf"), Recipe.of("fp16")).graph
    plan = evaluate(make_replica(graph, BOW, Workload(1, 1, 264)), [0, *[1] * 80, 0])
    message = problems(plan, graph)[0]
    assert "divide it among more replicas" in message


def test_idle_ipus() -> None:
    plan = evaluate(make_replica(MODEL.sharded(3), C600, WORKLOAD), [1, 1, 1, 1, 2])
    assert warnings(plan) == ["5 stages x 3 replicas = 15 IPUs; hardware would reserve 16, 1 idle"]
    assert problems(plan, GRAPH) == ["5 stages x 3 replicas need 16 IPUs; C600 links at most 8 cards"]
    assert warnings(evaluate(make_replica(GRAPH, C600, WORKLOAD), [3, 3])) == []


@pytest.mark.parametrize("precision", ["fp8", "fp8_weight"])
def test_fp8_needs_a_c600(precision: str) -> None:
    with pytest.raises(ConfigError, match="fp8 needs C600; use device=c600 or precision=int8"):
        check_device(GC200, ["int4", precision])
    check_device(C600, [precision])
    check_device(GC200, ["int8"])


def test_prompts_longer_than_max_length() -> None:
    with pytest.raises(ConfigError, match="prompt 300 > max_length 264; shorten the prompt"):
        check_prompt(300, 264)
    check_prompt(264, 264)


def test_precision_and_weights_that_disagree() -> None:
    packed = build_model(config(LLAMA), Recipe.of("int4"), max_length=64)
    note = weights_note("int4", packed.graph, packed.stored_bits)
    assert note == "precision int4 requested but weights are fp16: they are quantized when the model is compiled"
    assert weights_note("fp16", GRAPH, 16) is None
    assert weights_note("fp16", GRAPH, 4) == (
        "precision fp16 requested but weights are int4: they are unpacked when the model is compiled"
    )


def test_no_plan_at_all() -> None:
    model = build_model(find_config("meta-llama/Llama-2-70b-hf"), Recipe.of("fp16"))
    found = search(model.sharded, C600, WORKLOAD)
    assert found.plans == ()
    text = explain_failure(evaluate(make_replica(model.graph, C600, WORKLOAD), [80]), found.rejected)
    assert "the SRAM of 146.7 IPUs; C600 links at most 8 cards" in text


def test_words() -> None:
    found = search(MODEL.sharded, C600, WORKLOAD)
    plan = found.best("latency")
    own = evaluate(make_replica(GRAPH, C600, WORKLOAD), [3, 3])
    text = " ".join(explain(plan, found, "latency", own))
    for part in ("lowest latency", "Your own plan", "fits", "fullest tile", "-bound"):
        assert part in text
    lines = short_form(plan, GRAPH)
    assert lines[0] == "Emulated on c600: 1 stage on 1 IPU"
    assert "(unvalidated)" in lines[2]
    assert lines[-1] == footer()
    assert "unvalidated" in footer()


def test_a_pipeline_says_how_many_requests_it_needs() -> None:
    device = dataclasses.replace(C600, tiles=16, tile_bytes=30_000, code_bytes=64, code_bytes_per_op=8)
    found = search(MODEL.sharded, device, WORKLOAD)
    plan = found.best("throughput")
    assert plan.is_pipelined
    words = " ".join(explain(plan, found, "throughput"))
    assert f"{len(plan.stages)} batches are in flight" in words
