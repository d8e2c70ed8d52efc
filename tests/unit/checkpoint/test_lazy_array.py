# SPDX-License-Identifier: Apache-2.0
"""Arrays that are made when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import LLAMA_METADATA, llama_weights, to_gguf, write_gguf

from poptransformer.checkpoint import LazyArray, StateDict, open_checkpoint, release
from poptransformer.checkpoint.lazy_array import PackedBlocks

pytestmark = pytest.mark.unit


class Source:
    """Counts how often the values are made."""

    def __init__(self) -> None:
        self.values = np.arange(6, dtype=np.float32).reshape(2, 3)
        self.reads = 0

    def __call__(self) -> np.ndarray:
        self.reads += 1
        return self.values


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def lazy(source: Source) -> LazyArray:
    return LazyArray(source, (2, 3), PackedBlocks("x", "Q4_1", 2, 3, {}))


def test_what_is_known_without_reading(source: Source, lazy: LazyArray) -> None:
    assert (lazy.shape, lazy.ndim, lazy.size, lazy.nbytes, len(lazy)) == ((2, 3), 2, 6, 24, 2)
    assert lazy.dtype == np.float32 and "Q4_1" in repr(lazy)
    assert lazy.T.shape == (3, 2) and lazy.T.packed is None and lazy.T.T.packed is lazy.packed
    assert StateDict.wrap({"x": lazy}).updated({"y": lazy})["y"] is lazy
    assert not hasattr(lazy, "no_such_thing") and not release(lazy)
    assert source.reads == 0


@pytest.mark.parametrize(
    "read",
    [
        np.asarray,
        lambda a: np.asarray(a, np.float64),
        np.ascontiguousarray,
        lambda a: a[1:],
        lambda a: a.reshape(-1),
        lambda a: a.astype(np.float16),
        lambda a: a.transpose(1, 0),
        lambda a: a.T + 1,
        lambda a: 2 * a,
        lambda a: a @ a.T,
        lambda a: -a,
        lambda a: a == a,
        lambda a: np.concatenate((a, a)),
        lambda a: np.split(a, 3, axis=1)[1],
        lambda a: np.stack(list(a)),
        lambda a: np.sqrt(a),
        lambda a: a.sum(axis=0),
    ],
)
def test_reading_gives_ordinary_arrays(source: Source, lazy: LazyArray, read) -> None:
    found = read(lazy)
    assert type(found) is np.ndarray and source.reads > 0
    np.testing.assert_array_equal(found, read(source.values))
    assert found.dtype == read(source.values).dtype


def test_no_view_without_a_copy_can_be_had(lazy: LazyArray) -> None:
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(lazy, copy=False)


def test_a_gguf_file_gives_its_pages_back(tmp_path: Path) -> None:
    weights = {**llama_weights(), "lm_head.weight": np.ones((40, 64 * 128), np.float32)}
    state = open_checkpoint(write_gguf(tmp_path / "m.gguf", to_gguf(weights, "Q8_0"), LLAMA_METADATA)).state_dict
    array = state["lm_head.weight"]
    assert release(array) and release(array.T)
    np.testing.assert_allclose(array, weights["lm_head.weight"], rtol=1e-3)
