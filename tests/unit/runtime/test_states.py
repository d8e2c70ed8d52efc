# SPDX-License-Identifier: Apache-2.0
"""States that are no caches: they alternate between two buffers, in steps and in the loop."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import poptransformer
from poptransformer.errors import GraphError
from poptransformer.models.base_model import HFDecBaseModel
from poptransformer.runtime import StepRunner
from poptransformer.step import BATCH, StateSpec
from tests.unit.runtime import recurrent, tiny
from tests.unit.runtime.steps import close, decode, prefill

ROWS = tiny.PROMPTS


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
