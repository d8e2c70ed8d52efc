# SPDX-License-Identifier: Apache-2.0
"""Every model variant against PyTorch: logits to 1e-4, greedy ids exactly, with and without the native library."""

from __future__ import annotations

import numpy as np
import pytest

from poptransformer.engine import Engine
from tests.parity.conftest import Pair

ATOL = 1e-4
ENGINES = ["engine", "plain_engine", "saved_engine"]


def padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return ids, lengths


@pytest.fixture(params=ENGINES)
def any_engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(request.param)


def test_reference_logits_are_not_tiny(pair: Pair, rows: list[np.ndarray]) -> None:
    """A tolerance of 1e-4 says nothing about logits that are all near zero."""
    assert pair.logits(rows[0]).std() > 0.5


def test_prefill(pair: Pair, any_engine: Engine, rows: list[np.ndarray]) -> None:
    logits = any_engine.logits(rows[0])
    np.testing.assert_allclose(logits[0], pair.logits(rows[0]), atol=ATOL, rtol=0)


def test_ragged_prefill(pair: Pair, any_engine: Engine, rows: list[np.ndarray]) -> None:
    logits = any_engine.logits(*padded(rows))
    for row, result in zip(rows, logits, strict=True):
        np.testing.assert_allclose(result[: len(row)], pair.logits(row), atol=ATOL, rtol=0)


def test_every_decode_step_of_a_ragged_batch(pair: Pair, any_engine: Engine, rows: list[np.ndarray]) -> None:
    ids, lengths = padded(rows)
    runner = any_engine.runtime.start(len(rows), 64)
    runner.forward(ids, lengths, lengths[:, None] - 1)
    steps = np.random.default_rng(3).integers(1, 60, (6, len(rows)))
    references = [pair.decode_logits(row, steps[:, i]) for i, row in enumerate(rows)]
    for number, step in enumerate(steps):
        logits = runner.forward(step[:, None], np.ones(len(rows), np.int64), np.zeros((len(rows), 1), np.int64))
        for ours, reference in zip(logits.numpy(), references, strict=True):
            np.testing.assert_allclose(ours[0], reference[number], atol=ATOL, rtol=0)


def test_greedy_ids_step_by_step(pair: Pair, any_engine: Engine, rows: list[np.ndarray]) -> None:
    ours = any_engine.generate([row.tolist() for row in rows], max_new_tokens=12)
    assert ours == [pair.generate(row, max_new_tokens=12) for row in rows]


def test_greedy_ids_in_one_call(pair: Pair, any_engine: Engine, rows: list[np.ndarray]) -> None:
    prompts = [row.tolist() for row in rows]
    params = any_engine.params(prompts, max_new_tokens=12)
    ours = any_engine.runtime.generate(prompts, params, any_engine.stop_token_ids)
    assert ours == [pair.generate(row, max_new_tokens=12) for row in rows]


def test_streaming(any_engine: Engine, rows: list[np.ndarray]) -> None:
    """Steps come one by one, whoever has ended; together they are the greedy answers."""
    prompts, limits = [row.tolist() for row in rows], [12, 3, 7, 1]
    steps = list(any_engine.stream(prompts, max_new_tokens=limits))
    answers = any_engine.generate(prompts, max_new_tokens=limits)
    assert len(steps) == max(map(len, answers))
    assert [[step[i] for step in steps if step[i] is not None] for i in range(len(rows))] == answers


def test_a_row_gives_what_it_gives_alone(any_engine: Engine, rows: list[np.ndarray]) -> None:
    prompts = [row.tolist() for row in rows]
    settings = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.95, "seed": 11}
    together = any_engine.generate(prompts, **settings)
    assert together == [any_engine.generate(prompt, **settings) for prompt in prompts]


def test_sampling_in_one_call_equals_sampling_by_steps(any_engine: Engine, rows: list[np.ndarray]) -> None:
    prompts = [row.tolist() for row in rows]
    settings = {"temperature": 1.3, "top_k": 9, "repetition_penalty": 1.2, "seed": [1, 2, 3, 2**40]}
    params = any_engine.params(prompts, max_new_tokens=12, **settings)
    ours = any_engine.runtime.generate(prompts, params, any_engine.stop_token_ids)
    assert ours == any_engine.generate(prompts, max_new_tokens=12, **settings)


def test_beam_search(pair: Pair, engine: Engine, rows: list[np.ndarray]) -> None:
    ours = engine.generate([row.tolist() for row in rows], max_new_tokens=8, num_beams=3)
    assert ours == [pair.generate(row, max_new_tokens=8, num_beams=3) for row in rows]
