# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from poptransformer.checkpoint import (
    CheckpointError,
    LazyTensor,
    MissingWeightError,
    ShapeMismatchError,
    StateDict,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def state() -> StateDict:
    return StateDict.wrap(
        {"model.a.weight": np.ones((2, 3), np.float32), "model.b.bias": np.zeros(4, np.float16)}, "tiny"
    )


def test_it_is_a_mapping_of_arrays(state: StateDict) -> None:
    assert list(state) == ["model.a.weight", "model.b.bias"]
    assert len(state) == 2 and "model.b.bias" in state and "c" not in state
    assert state["model.a.weight"].shape == (2, 3)
    assert state.get("c") is None
    assert dict(state.items()).keys() == state.keys()
    assert state.shape("model.b.bias") == (4,) and state.dtype("model.b.bias") == np.float16
    assert state.nbytes("model.b.bias") == 8
    assert StateDict.wrap(state) is state


def test_a_missing_weight_names_its_nearest_neighbours(state: StateDict) -> None:
    with pytest.raises(MissingWeightError) as caught:
        state.get_tensor("model.a.weigth", [2, 3])
    assert isinstance(caught.value, KeyError)
    text = str(caught.value)
    assert text.startswith("weight 'model.a.weigth' is not in tiny (2 tensors)") and "'model.a.weight'" in text
    with pytest.raises(MissingWeightError, match=r"nearest weights: 'model\.a\.weight'"):
        state["a.weight"]
    with pytest.raises(MissingWeightError, match="no weights resemble it"):
        state.shape("zzzzzzzzzzzz")


def test_a_misshapen_weight_names_both_shapes(state: StateDict) -> None:
    assert state.get_tensor("model.a.weight", (2, 3)).sum() == 6
    with pytest.raises(ShapeMismatchError, match=r"'model.a.weight' of tiny has shape \[2, 3\].* expects \[3, 2\]"):
        state.get_tensor("model.a.weight", [3, 2])


def test_nothing_is_read_before_it_is_asked_for() -> None:
    reads: list[str] = []

    def load() -> np.ndarray:
        reads.append("a")
        return np.arange(3)

    state = StateDict({"a": LazyTensor(load, (3,), np.dtype(np.int64))})
    renamed = state.renamed(lambda key: f"x.{key}").updated({"x.b": lambda: np.zeros(2), "x.c": np.ones(1)})
    assert list(renamed.keys()) == ["x.a", "x.b", "x.c"]
    assert renamed.shape("x.a") == (3,) and renamed.nbytes("x.a") == 24
    assert reads == []
    assert renamed["x.a"].tolist() == [0, 1, 2] and renamed["x.b"].tolist() == [0, 0]
    assert renamed.shape("x.b") == (2,) and renamed.dtype("x.b") == np.float64
    assert reads == ["a"]


def test_rename_drops_and_refuses_collisions(state: StateDict) -> None:
    kept = state.renamed(lambda key: None if key.endswith("bias") else key.removeprefix("model."))
    assert list(kept) == ["a.weight"]
    with pytest.raises(CheckpointError, match=r"'model.a.weight' and 'model.b.bias' of tiny .* named 'same'"):
        state.renamed(lambda key: "same")


def test_update_replaces_and_leaves_the_original_alone(state: StateDict) -> None:
    other = state.updated({"model.a.weight": np.zeros(5)})
    assert other.shape("model.a.weight") == (5,) and state.shape("model.a.weight") == (2, 3)
