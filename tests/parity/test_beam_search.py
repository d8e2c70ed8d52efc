# SPDX-License-Identifier: Apache-2.0
"""Beam search and greedy steps against transformers' `generate`, token for token, each prompt alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from poptransformer.generation import SamplingParams, beam_search, generate_ids
from tests.unit.generation.fake_runtime import FakeRuntime, one_thread, tiny_gpt2

pytestmark = pytest.mark.parity

# Tokens that the model likes, so that many answers end early.
LIKELY = [0, 3, 7, 25, 30, 34, 37, 41, 52]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def reference(prompt: list[int], row: SamplingParams, stops: frozenset[int]) -> tuple[list[int], float]:
    ids = torch.tensor([prompt])
    beams = {}
    if row.num_beams > 1:
        beams = {"length_penalty": row.length_penalty, "early_stopping": row.early_stopping}
    output = tiny_gpt2().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        pad_token_id=0,
        max_new_tokens=row.max_new_tokens,
        eos_token_id=None if row.ignore_eos or not stops else sorted(stops),
        num_beams=row.num_beams,
        repetition_penalty=row.repetition_penalty,
        return_dict_in_generate=True,
        output_scores=True,
        **beams,
    )
    score = output.sequences_scores.item() if row.num_beams > 1 else 0.0
    return output.sequences[0, len(prompt) :].tolist(), score


def random_batch(rng: np.random.Generator, rows: int) -> tuple[list[list[int]], frozenset[int]]:
    prompts = [rng.integers(0, 61, rng.integers(1, 12)).tolist() for _ in range(rows)]
    return prompts, frozenset(rng.choice(LIKELY, rng.integers(2, 6), replace=False).tolist())


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.0])
def test_beams(early_stopping, length_penalty):
    rng = np.random.default_rng(int(10 * length_penalty) + 20)
    ended = 0
    for _ in range(3):
        prompts, stops = random_batch(rng, 4)
        rows = [
            SamplingParams(
                max_new_tokens=int(rng.integers(6, 18)),
                num_beams=int(rng.integers(2, 6)),
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
                ignore_eos=bool(rng.random() < 0.1),
            )
            for _ in prompts
        ]
        found = beam_search(FakeRuntime(), prompts, rows, stops)
        for prompt, row, hypothesis in zip(prompts, rows, found, strict=True):
            ids, score = reference(prompt, row, stops)
            assert hypothesis.ids == ids, row
            assert hypothesis.score == pytest.approx(score, rel=1e-5)
            ended += len(ids) < row.max_new_tokens
    assert ended or (early_stopping == "never" and length_penalty > 0)  # longer may always be better there


def test_beams_up_to_max_length():
    """The answer ends where max_length does, and its score is that of a search for so many tokens."""
    prompts = [[5, 6, 7, 8, 9, 10], [4, 3]]
    rows = [SamplingParams(max_new_tokens=30, num_beams=3, length_penalty=2.0, early_stopping="never")] * 2
    found = beam_search(FakeRuntime(max_length=12), prompts, rows, frozenset({3}))
    for prompt, hypothesis in zip(prompts, found, strict=True):
        row = SamplingParams(12 - len(prompt), num_beams=3, length_penalty=2.0, early_stopping="never")
        ids, score = reference(prompt, row, frozenset({3}))
        assert hypothesis.ids == ids
        assert hypothesis.score == pytest.approx(score, rel=1e-5)


def test_a_prompt_without_room():
    found = beam_search(FakeRuntime(max_length=4), [[1, 2, 3, 4], [5]], [SamplingParams(5, num_beams=2)] * 2)
    assert found[0].ids == []
    assert len(found[1].ids) == 3


def test_each_prompt_is_prefilled_once_and_finished_searches_leave():
    runtime = FakeRuntime()
    rows = [SamplingParams(max_new_tokens=n, num_beams=k) for n, k in ((2, 3), (4, 2))]
    beam_search(runtime, [[1, 2, 3], [4, 5]], rows)
    assert runtime.calls == [(2, 3), (5, 1), (2, 1), (2, 1)]


@pytest.mark.parametrize("seed", range(6))
def test_greedy_steps(seed):
    rng = np.random.default_rng(seed)
    prompts, stops = random_batch(rng, 5)
    rows = [
        SamplingParams(max_new_tokens=int(rng.integers(1, 25)), repetition_penalty=float(rng.choice([1.0, 1.3, 0.8])))
        for _ in prompts
    ]
    found = generate_ids(FakeRuntime(), prompts, rows, stops)
    assert found == [reference(prompt, row, stops)[0] for prompt, row in zip(prompts, rows, strict=True)]
