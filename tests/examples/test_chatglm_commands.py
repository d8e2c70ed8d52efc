# SPDX-License-Identifier: Apache-2.0
"""What users of the ChatGLM example type, and its committed checkpoint against PyTorch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_commands import run

import poptransformer
from tests.parity.chatglm_reference import ChatGLMReference

CHATGLM = Path(__file__).parents[2] / "examples" / "chatglm"
QUESTIONS = ["How do you do, my dear Miss Woodhouse?", "Shall you be at the ball?"]


@pytest.fixture(scope="module")
def reference() -> ChatGLMReference:
    return ChatGLMReference.from_pretrained(CHATGLM / "tiny", dtype=torch.float32).eval()


def answer(model: ChatGLMReference, prompt: str) -> str:
    """PyTorch's greedy answer, of 24 tokens at most."""
    tokenizer = poptransformer.load(CHATGLM / "tiny").tokenizer
    ids = torch.tensor([tokenizer.encode(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    return tokenizer.decode(output[0, ids.shape[1] :].tolist())


def test_the_committed_checkpoint_equals_pytorch(reference: ChatGLMReference) -> None:
    engine = poptransformer.load(CHATGLM / "tiny")
    ids = engine.tokenizer.encode(QUESTIONS[0])
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(engine.logits([ids]), expected, atol=1e-4, rtol=0)
    assert (CHATGLM / "tiny" / "model.safetensors").stat().st_size <= 4_000_000


def test_a_question(reference: ChatGLMReference) -> None:
    out, err = run(CHATGLM, "--config-name=sharding", "log_level=info", "model.max_loop=24")
    assert out == f"> {QUESTIONS[0]}\n{answer(reference, QUESTIONS[0])}\n"
    assert "Initializing model class: ChatGLMDecModel" in err.splitlines()
    assert "block 3 placed on IPU 0" in err.splitlines()


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_conversation(reference: ChatGLMReference, stream: str) -> None:
    """Of one replica of the tensor parallel configuration; the second question comes with the first and its answer."""
    said = f"inputs.input_string=[{','.join(map(repr, QUESTIONS))}]"
    settings = ["global_args.num_replicas=1", "model.max_loop=24", f"stream={stream}", "inputs.use_history=true"]
    out, err = run(CHATGLM, "--config-name=tp", *settings, said)
    first = answer(reference, QUESTIONS[0])
    second = answer(reference, f"[Round 0]\n问：{QUESTIONS[0]}\n答：{first}\n[Round 1]\n问：{QUESTIONS[1]}\n答：")
    assert second != answer(reference, QUESTIONS[1])
    assert out == f"> {QUESTIONS[0]}\n{first}\n> {QUESTIONS[1]}\n{second}\n"
    assert len(re.findall("^Performance:$", err, re.MULTILINE)) == 2


def test_prompts_and_four_bits() -> None:
    prompts = ["inputs.input_string=null", "inputs.input_string_list=['It was a fine morning, and']"]
    out, err = run(CHATGLM, "--config-name=int4_sharding", *prompts, "model.max_loop=8")
    assert out.startswith("It was a fine morning, and ")
    assert "quantized 17 of 17 weight matrices" in err


def test_a_prompt_longer_than_the_first_stage() -> None:
    _, err = run(CHATGLM, "model.input_length=4", code=1)
    assert re.search(r"A prompt has \d+ tokens, but model.input_length is 4\. Shorten the prompt or raise", err)
