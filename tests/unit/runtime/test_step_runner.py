# SPDX-License-Identifier: Apache-2.0
"""Steps: caches that stay where they are, states that alternate, and rows that move."""

from __future__ import annotations

import gc

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import poptransformer
from poptransformer.errors import GraphError
from poptransformer.models.base_model import HFDecBaseModel
from poptransformer.runtime import StepRunner
from poptransformer.step import BATCH, StateSpec
from tests.unit.runtime import recurrent, tiny

ROWS = tiny.PROMPTS
ONE = np.ones(len(ROWS), np.int64)


def prefill(runner: StepRunner, rows: list[list[int]]) -> np.ndarray:
    feeds = tiny.inputs(*rows)
    return runner.forward(feeds["input_ids"], feeds["lengths"], feeds["lengths"][:, None] - 1).numpy()[:, 0]


def decode(runner: StepRunner, tokens: list[int], active: list[int] | None = None) -> np.ndarray:
    ids = np.array(tokens)[:, None]
    lengths = np.ones(len(ids), np.int64) if active is None else np.array(active)
    return runner.forward(ids, lengths, np.zeros_like(ids)).numpy()[:, 0]


def alone(row: list[int]) -> np.ndarray:
    """Logits after the last token of a row that had the model to itself."""
    return tiny.engine().logits(row)[0, -1]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


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
    with pytest.raises(Exception, match="past_lengths|slots"):
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


# -- states that are no caches ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sums() -> object:
    return recurrent.engine()


def state(runner: StepRunner, name: str) -> np.ndarray:
    names = [spec.past for spec in runner._states]
    return runner._pasts[names.index(name)].numpy()


def test_states_alternate_between_two_buffers(sums) -> None:
    runner = sums.runtime.start(2, 6)
    assert (state(runner, "past.count") == recurrent.COUNT).all()
    found = prefill(runner, [[3, 4, 5], [6]])
    close(found, np.stack([recurrent.logits([3, 4, 5])[-1], recurrent.logits([6])[-1]]))
    assert state(runner, "past.count").tolist() == [[recurrent.COUNT + 3], [recurrent.COUNT + 1]]
    close(
        decode(runner, [7, 8]),
        np.stack([recurrent.logits([3, 4, 5, 7], before=3)[-1], recurrent.logits([6, 8], before=1)[-1]]),
    )
    places = {value.data_ptr() for value in (*runner._pasts, *runner._presents)}
    assert len(places) == 2 * len(runner._states)
    decode(runner, [9, 9])
    assert {value.data_ptr() for value in (*runner._pasts, *runner._presents)} == places
    assert (state(runner, "past.table") == 3).all()


@pytest.mark.parametrize("rows", [[1, 0], [0], [1, 1, 0], [0, 0]], ids=str)
def test_states_of_any_shape_move_with_their_rows(sums, rows: list[int]) -> None:
    """Also where the slots are not the third dimension, and where a step changes all of them."""
    runner = sums.runtime.start(2, 6)
    prefill(runner, [[3, 4, 5], [6]])
    state(runner, "past.table")[1] += 10
    runner.reorder(np.array(rows))
    assert state(runner, "past.count").tolist() == [[recurrent.COUNT + (3, 1)[row]] for row in rows]
    assert (state(runner, "past.table") == np.array([1.0, 11.0])[rows][:, None, None]).all()
    histories = [([3, 4, 5], [6])[row] for row in rows]
    expected = [recurrent.logits([*history, 9], before=len(history))[-1] for history in histories]
    close(decode(runner, [9] * len(rows)), np.stack(expected))


def test_a_loop_carries_states_as_steps_do(sums) -> None:
    rows = [list(row) for row in ROWS]
    expected = [recurrent.greedy(row, 10) for row in rows]
    params = sums.params(rows, max_new_tokens=10)
    assert sums.generate(rows, max_new_tokens=10) == expected
    assert sums.runtime.generate(rows, params, sums.stop_token_ids) == expected


def test_beams_carry_states(sums) -> None:
    rows = [list(row) for row in ROWS]
    together = sums.generate(rows, max_new_tokens=6, num_beams=3)
    assert together == [sums.generate(row, max_new_tokens=6, num_beams=3) for row in rows]
    assert together != [recurrent.greedy(row, 6) for row in rows]


def test_saved_states(sums) -> None:
    copy = poptransformer.load(sums.save(tiny.new_folder() / "model"))
    assert copy.runtime.compiled.info.states == sums.runtime.compiled.info.states
    assert copy.generate(ROWS[0], max_new_tokens=5) == recurrent.greedy(ROWS[0], 5)


class Mistaken(HFDecBaseModel):
    """Declares a state and forgets it."""

    def build_model_graph(self) -> ir.Value:
        self.step.state(StateSpec("past.lost", "present.lost", "float32", (BATCH, 2)))
        return recurrent.RunningSumModel.build_model_graph(self)  # type: ignore[arg-type]


def test_a_state_that_is_never_updated_is_named() -> None:
    with tiny.use_build(tiny.Build()):
        model = Mistaken(hf_model_name=str(tiny.folder()))
    with pytest.raises(GraphError, match=r"state past\.lost is never updated"):
        model.build_graph()


class Shared(recurrent.RunningSumModel):
    """Two states take one value, a third keeps what it has."""

    def build_model_graph(self) -> ir.Value:
        logits = super().build_model_graph()
        twin = self.step.state(StateSpec("past.twin", "present.twin", "float32", (BATCH, self.hf_config.hidden_size)))
        twin.update(self.step.presents["present.sum"])
        still = self.step.state(StateSpec("past.still", "present.still", "float32", (BATCH, 2), initial=4.0))
        still.update(still.past)
        return logits


def test_states_may_share_values_and_stay_as_they_are() -> None:
    with tiny.use_build(tiny.Build()):
        model = Shared(hf_model_name=str(tiny.folder()), max_length=64)
    model.build_graph()
    engine = poptransformer.Engine.from_model(model)
    runner = engine.runtime.start(1, 6)
    prefill(runner, [[3, 4]])
    decode(runner, [5])
    assert (state(runner, "past.twin") == state(runner, "past.sum")).all()
    assert (state(runner, "past.still") == 4).all()
    params = engine.params([ROWS[0]], max_new_tokens=5)
    assert engine.runtime.generate([ROWS[0]], params, engine.stop_token_ids) == [recurrent.greedy(ROWS[0], 5)]


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
