# SPDX-License-Identifier: Apache-2.0
"""Steps: caches that stay where they are, states that alternate, and rows that move."""

from __future__ import annotations

import gc

import numpy as np
import onnxruntime as ort
import pytest

import poptransformer
from tests.unit.runtime import tiny
from tests.unit.runtime.steps import alone, close, decode, prefill

ROWS = tiny.PROMPTS


# -- caches -----------------------------------------------------------------------------------------------------------


def test_a_cache_is_one_buffer_that_never_moves() -> None:
    runner = tiny.engine().runtime.start(3, 20)
    places = [value.data_ptr() for value in runner._pasts]
    assert len(set(places)) == 4
    for step in range(4):
        _ = prefill(runner, list(ROWS)) if step == 0 else decode(runner, [1, 2, 3])
        assert all(past is present for past, present in zip(runner._pasts, runner._presents, strict=True))
        assert [value.data_ptr() for value in runner._pasts] == places


@pytest.mark.parametrize("use_native", [True, False])
def test_only_the_slots_of_the_step_are_written(use_native: bool) -> None:
    runtime = tiny.engine().runtime if use_native else tiny.without_library().runtime
    runner = runtime.start(2, 12)
    prefill(runner, [[5, 6, 7], [8]])
    marked = [value.numpy() for value in runner._pasts]
    for cache in marked:
        cache[:, :, 6:] = 77.0  # unused slots: no later step may read or write them
    before = [cache.copy() for cache in marked]
    decode(runner, [9, 10])
    for cache, old in zip(marked, before, strict=True):
        changed = np.argwhere((cache != old).any(axis=(1, 3)))
        assert {tuple(place) for place in changed.tolist()} == {(0, 3), (1, 1)}
    close(decode(runner, [11, 12]), np.stack([alone([5, 6, 7, 9, 11]), alone([8, 10, 12])]))


def test_a_row_of_length_0_stays_where_it_is() -> None:
    runner = tiny.engine().runtime.start(3, 20)
    prefill(runner, list(ROWS))
    decode(runner, [1, 250, 3], active=[1, 0, 1])
    assert runner.past_lengths.tolist() == [6, 1, 12]
    found = decode(runner, [4, 5, 6])
    close(found, np.stack([alone([*ROWS[0], 1, 4]), alone([*ROWS[1], 5]), alone([*ROWS[2], 3, 6])]))


def test_slots_can_be_used_up_and_no_further() -> None:
    runner = tiny.engine().runtime.start(1, 4)
    prefill(runner, [[1, 2, 3]])
    close(decode(runner, [4]), alone([1, 2, 3, 4])[None])
    with pytest.raises(Exception, match="past_lengths|slots|TensorScatter"):
        decode(runner, [5])


def test_prompts_can_come_in_pieces() -> None:
    runner = tiny.engine().runtime.start(2, 20)
    prefill(runner, [[1, 2, 3], [4]])
    found = prefill(runner, [[5], [6, 7, 8, 9]])
    close(found, np.stack([alone([1, 2, 3, 5]), alone([4, 6, 7, 8, 9])]))


def test_results_stay_after_the_next_step() -> None:
    runner = tiny.engine().runtime.start(1, 8)
    first = runner.forward(np.array([[1, 2]]), np.array([2]), np.array([[0, 1]]))
    kept = first.numpy().copy()
    decode(runner, [3])
    assert (first.numpy() == kept).all()


def test_a_runner_keeps_what_its_session_reads() -> None:
    """onnxruntime has bare pointers to the weights; they must not go with the engine."""
    expected = tiny.engine().logits([1, 2])[0, -1]
    runner = poptransformer.load(tiny.folder()).runtime.start(1, 8)
    gc.collect()
    noise = [np.full((200, 200), 9e9, np.float32) for _ in range(50)]
    close(prefill(runner, [[1, 2]])[0], expected)
    del noise


# -- reordering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [2, 0, 1], [0, 0, 0], [2], [1, 0], [0, 0, 1, 2, 2, 1], [2, 2, 2, 2]], ids=str
)
def test_rows_move_and_multiply(rows: list[int]) -> None:
    runner = tiny.engine().runtime.start(3, 20)
    prefill(runner, list(ROWS))
    histories = [list(ROWS[row]) for row in rows]
    for number in range(2):  # the second time, the order undoes itself or shrinks to one row
        runner.reorder(np.array(rows if number == 0 else [len(rows) - 1]))
        histories = histories if number == 0 else histories[-1:]
        assert runner.batch == len(histories)
        for token in (30, 40):
            tokens = [token + row for row in range(len(histories))]
            histories = [[*history, new] for history, new in zip(histories, tokens, strict=True)]
            close(decode(runner, tokens), np.stack([alone(history) for history in histories]))
    assert runner.past_lengths.tolist() == [len(history) for history in histories]


def test_rows_move_before_the_first_step() -> None:
    runner = tiny.engine().runtime.start(1, 20)
    runner.reorder(np.array([0, 0]))
    close(prefill(runner, [[1, 2], [3]]), np.stack([alone([1, 2]), alone([3])]))


# -- sampling through the runtime -------------------------------------------------------------------------------------


def test_logits_of_steps_and_arrays_are_sampled_alike() -> None:
    runtime = tiny.engine().runtime
    runner = runtime.start(2, 8)
    value = runner.forward(np.array([[1, 2], [3, 4]]), np.array([2, 2]), np.array([[1], [1]]))
    settings = poptransformer.generation.arrays(
        poptransformer.generation.sampling_rows(2, max_new_tokens=1, temperature=0.8, seed=[1, 2])
    )
    history, step = np.array([[1, 2], [3, 4]]), np.zeros(2, np.int64)
    assert isinstance(value, ort.OrtValue)
    tokens, probabilities = runtime.sample(value, history, settings, step, want_probabilities=True)
    for logits in (value, value.numpy(), value.numpy()[:, 0], value.numpy().astype(np.float64)):
        assert runtime.sample(logits, history, settings, step).tolist() == tokens.tolist()
    assert probabilities.shape == (2, tiny.VOCABULARY)
    close(probabilities.sum(1), np.ones(2))
