# SPDX-License-Identifier: Apache-2.0
"""The commands of the ChatGLM2 example."""

from __future__ import annotations

from pathlib import Path

from test_commands import ROOT, run

CHATGLM2 = ROOT / "examples" / "chatglm2"
ASKED = 'inputs.input_string=["How do you do, Mr. Darcy?", "Are you not happy here?"]'


def test_a_question() -> None:
    out, err = run(CHATGLM2, "--config-name=sharding", "log_level=info")
    question, answer = out.strip().split("\n", 1)
    assert question == "> How do you do, my dear Miss Woodhouse?"
    assert len(answer.split()) > 4 and "[Round" not in answer
    assert "Initializing model class: ChatGLM2DecModel" in err.splitlines()
    assert "loading transformer.encoder.layers.3.mlp.dense_4h_to_h.weight with shape" in err


def test_a_conversation_is_the_same_streamed_or_not_and_differs_from_single_questions(tmp_path: Path) -> None:
    cache = f"session.execution_cache_name={tmp_path}"
    streamed, _ = run(CHATGLM2, ASKED, "inputs.use_history=true", cache)
    whole, err = run(CHATGLM2, ASKED, "inputs.use_history=true", "stream=false", cache, "log_level=info")
    alone, _ = run(CHATGLM2, ASKED, cache)
    assert "using the compiled model in" in err
    assert [line.strip() for line in streamed.splitlines()] == [line.strip() for line in whole.splitlines()]
    first, second = streamed.split("> ")[1:]
    assert alone.startswith(f"> {first}") and f"> {second}" not in alone


def test_prompts_in_four_bits_by_beams() -> None:
    prompts = ["inputs.input_string=null", 'inputs.input_string_list=["It was", "My name is"]', "model.max_loop=12"]
    out, _ = run(CHATGLM2, *prompts, "global_args.precision=int4", "global_args.batch_size=2", "model.num_beams=3")
    first, second = out.splitlines()
    assert first.startswith("[1/2] It was") and second.startswith("[2/2] My name is")
    assert min(len(first), len(second)) > 40


def test_tensor_parallel_layers_on_one_replica() -> None:
    plain, _ = run(CHATGLM2, "model.max_loop=12")
    out, _ = run(CHATGLM2, "--config-name=tp", "global_args.num_replicas=1", "model.max_loop=12")
    assert out == plain
