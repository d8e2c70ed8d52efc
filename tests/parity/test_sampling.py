# SPDX-License-Identifier: Apache-2.0
"""The `Sample` op against transformers' logits processors: its distributions, and the draws from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from poptransformer.generation import SamplingArrays, SamplingParams, arrays
from tests.unit.generation.fake_runtime import sample

pytestmark = pytest.mark.parity

VOCABULARY = 97
# Filters compare fp32 sums with a threshold: closer to it than this, rounding decides.
TOO_CLOSE = 1e-5


def reference(logits: np.ndarray, history: np.ndarray, row: SamplingParams) -> tuple[np.ndarray, bool]:
    """The distribution that transformers draws one row from, and whether rounding could change it."""
    ids, scores = torch.tensor(history[None]), torch.tensor(logits[None])
    if row.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(row.repetition_penalty)(ids, scores)
    if row.temperature != 1:
        scores = TemperatureLogitsWarper(row.temperature)(ids, scores)
    if row.top_k:
        scores = TopKLogitsWarper(row.top_k)(ids, scores)
    close = False
    if row.top_p < 1:
        tail = np.cumsum(np.sort(scores.double().softmax(-1).numpy()[0]))
        close = bool(np.abs(tail[:-1] - (1 - row.top_p)).min() < TOO_CLOSE)
        scores = TopPLogitsWarper(row.top_p)(ids, scores)
    if row.min_p > 0:
        probability = scores.double().softmax(-1).numpy()[0]
        ratio = probability[probability < probability.max()] / probability.max()
        close |= bool(np.any(np.abs(ratio - row.min_p) < TOO_CLOSE))
        scores = MinPLogitsWarper(row.min_p)(ids, scores)
    return scores.softmax(-1).numpy()[0], close


def random_row(rng: np.random.Generator) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=1,
        temperature=float(rng.choice([0.01, 0.3, 0.8, 1.0, 1.7, 100.0])),
        top_k=int(rng.choice([0, 0, 2, 5, 40, VOCABULARY, VOCABULARY + 1, 10**12])),
        top_p=float(rng.choice([1.0, 1e-6, 0.1, 0.5, 0.9, 0.999])),
        min_p=float(rng.choice([0.0, 0.0, 0.02, 0.3, 1.0])),
        repetition_penalty=float(rng.choice([1.0, 0.5, 1.3, 5.0])),
        seed=int(rng.integers(2**62)),
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_distributions(seed, ties):
    rng = np.random.default_rng(seed)
    rows = [random_row(rng) for _ in range(150)]
    spread = rng.choice([0.5, 2, 8], size=(len(rows), 1))
    logits = (rng.normal(size=(len(rows), VOCABULARY)) * spread).astype("f")
    if ties:
        logits = np.round(logits)
    history = rng.integers(0, VOCABULARY, (len(rows), 12))
    tokens, probabilities = sample(logits, history, arrays(rows), np.zeros(len(rows), np.int64))
    left_out = 0
    for i, row in enumerate(rows):
        expected, close = reference(logits[i], history[i], row)
        found = probabilities[i]
        assert found[tokens[i]] > 0
        if close:
            left_out += 1
            continue
        if ties:  # which of several equals top-p keeps depends on the sort
            found, expected = np.sort(found), np.sort(expected)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9, err_msg=str(row))
    assert left_out < 20


def test_ties_at_every_threshold():
    """Equal probabilities that fp32 adds up exactly: what is just at a threshold goes as in transformers."""
    logits = np.zeros((1, 8), np.float32)
    logits[0, 6:] = -np.inf
    uniform = np.zeros((1, 8), np.float32)
    for given, row in (
        (uniform, SamplingParams(1, top_k=3)),
        (uniform, SamplingParams(1, top_k=0, top_p=0.5)),
        (uniform, SamplingParams(1, top_k=0, top_p=0.51)),
        (uniform, SamplingParams(1, top_k=0, top_p=0.0)),
        (uniform, SamplingParams(1, top_k=0, min_p=1.0)),
        (logits, SamplingParams(1, top_k=0, temperature=2.0)),
        (logits, SamplingParams(1, top_k=7, min_p=0.5)),
    ):
        history = np.zeros((1, 1), np.int64)
        _, found = sample(given, history, arrays([row]), np.zeros(1, np.int64))
        expected, _ = reference(given[0], history[0], row)
        np.testing.assert_allclose(np.sort(found[0]), np.sort(expected), rtol=1e-6, err_msg=str(row))


def test_greedy_rows_among_random_ones():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(6, VOCABULARY)).astype("f")
    logits[0, [20, 60]] = 9.0
    history = rng.integers(0, VOCABULARY, (6, 4))
    history[:2] = 5
    rows = [SamplingParams(1, repetition_penalty=1.5) for _ in range(6)]
    rows[2] = SamplingParams(1, temperature=0.0, top_k=0)
    rows[4] = SamplingParams(1, top_k=0, seed=1)
    steps = np.zeros(6, np.int64)
    tokens, probabilities = sample(logits, history, arrays(rows), steps)
    for i in (0, 1, 2, 3, 5):
        scores = torch.tensor(logits[i : i + 1])
        if i != 2:
            scores = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor(history[i : i + 1]), scores)
        assert tokens[i] == scores.argmax()
        np.testing.assert_array_equal(probabilities[i], np.eye(VOCABULARY)[tokens[i]])
    assert tokens[0] == 20
    np.testing.assert_allclose(probabilities[4], torch.tensor(logits[4]).softmax(-1), rtol=1e-5)
    greedy = [i for i in range(6) if i != 4]
    alone, _ = sample(logits[greedy], history[greedy], arrays([rows[i] for i in greedy]), steps[greedy])
    np.testing.assert_array_equal(alone, tokens[greedy])


def test_penalty_counts_a_token_once_however_often_it_occurs():
    logits = np.array([[2.0, -1.0, 0.5]], np.float32)
    settings = arrays([SamplingParams(1, top_k=0, repetition_penalty=2.0)])
    once = sample(logits, np.array([[0, 1]]), settings, np.zeros(1, np.int64))[1]
    often = sample(logits, np.array([[0, 1, 1, 0, 0, 1]]), settings, np.zeros(1, np.int64))[1]
    np.testing.assert_array_equal(once, often)
    np.testing.assert_allclose(once[0], torch.tensor([1.0, -2.0, 0.5]).softmax(0), rtol=1e-6)


def repeated(row: SamplingParams, count: int) -> SamplingArrays:
    return arrays([row] * count)


def sample_steps(logits: np.ndarray, settings: SamplingArrays, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Many draws from one row of logits `[V]` in one call: a draw knows its seed and step only."""
    count = len(steps)
    return sample(np.tile(logits, (count, 1)), np.zeros((count, 1), np.int64), settings, steps)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**40 + 3, 2**63 - 1])
def test_draws_follow_the_distribution(seed):
    """Pearson's chi-square over 20000 steps of one seed; chance exceeds 45 once in 10^5 at 11 degrees."""
    count, logits = 20000, np.linspace(-3, 1.5, 12, dtype=np.float32)
    settings = repeated(SamplingParams(1, top_k=0, seed=seed), count)
    steps = np.arange(count)
    tokens, probabilities = sample_steps(logits, settings, steps)
    expected = probabilities[0].astype(float) * count
    assert ((np.bincount(tokens, minlength=12) - expected) ** 2 / expected).sum() < 45
    # No memory from step to step: pairs of neighbours are as frequent as their parts say.
    pairs = np.bincount(tokens[:-1] * 12 + tokens[1:], minlength=144)
    expected = np.outer(probabilities[0], probabilities[0]).ravel() * (count - 1)
    often = expected > 5
    assert ((pairs - expected)[often] ** 2 / expected[often]).sum() < 144 + 8 * (2 * 144) ** 0.5


def test_seeds_are_independent():
    count, logits = 20000, np.zeros(16, np.float32)
    settings = repeated(SamplingParams(1, top_k=0), count)
    settings = dataclasses.replace(settings, seed=np.arange(count))
    tokens, _ = sample_steps(logits, settings, np.zeros(count, np.int64))
    assert ((np.bincount(tokens, minlength=16) - count / 16) ** 2 / (count / 16)).sum() < 55


def mixed(x: int) -> int:
    for factor, shift in ((0x21F0AAAD, 16), (0x735A2D97, 15)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 15)


def test_draws_are_those_of_the_documented_generator():
    """Equal probabilities of binary fractions make the token `floor(u * V)`; here u comes from integers."""
    rng = np.random.default_rng(0)
    seeds = np.concatenate([rng.integers(0, 2**63, 500), [0, 1, 2**32 - 1, 2**32, 2**63 - 1]])
    steps = np.concatenate([rng.integers(0, 10**6, 500), [0, 0, 1, 2**31, 2**32 - 1]])
    settings = dataclasses.replace(repeated(SamplingParams(1, top_k=0), len(seeds)), seed=seeds)
    tokens, _ = sample_steps(np.zeros(64, np.float32), settings, steps)
    expected = [
        mixed(mixed((seed & 0xFFFFFFFF) ^ mixed(seed >> 32)) ^ mixed(step)) * 64 >> 32
        for seed, step in zip(seeds.tolist(), steps.tolist(), strict=True)
    ]
    assert tokens.tolist() == expected


def test_draws_do_not_depend_on_the_batch():
    rng = np.random.default_rng(3)
    rows = [random_row(rng) for _ in range(40)]
    logits = rng.normal(size=(40, VOCABULARY)).astype("f") * 3
    history, steps = rng.integers(0, VOCABULARY, (40, 6)), rng.integers(0, 1000, 40)
    together, _ = sample(logits, history, arrays(rows), steps)
    backwards, _ = sample(logits[::-1].copy(), history[::-1].copy(), arrays(rows[::-1]), steps[::-1].copy())
    np.testing.assert_array_equal(together, backwards[::-1])
    for i in range(40):
        alone, _ = sample(logits[i : i + 1], history[i : i + 1], arrays(rows[i : i + 1]), steps[i : i + 1])
        assert alone[0] == together[i]


def test_a_token_without_probability_is_never_drawn():
    """Even where the uniform number is next to 0 or 1: the first and last tokens are filtered out here."""
    count, logits = 50000, np.full(32, -np.inf, np.float32)
    logits[10:20] = np.linspace(0, 2, 10)
    settings = repeated(SamplingParams(1, top_k=0, seed=9), count)
    tokens, _ = sample_steps(logits, settings, np.arange(count))
    assert set(tokens.tolist()) == set(range(10, 20))
