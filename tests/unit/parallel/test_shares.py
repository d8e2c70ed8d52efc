# SPDX-License-Identifier: Apache-2.0
"""Shares of weights: which rows and columns, read only when they are needed, packed blocks kept."""

from __future__ import annotations

import numpy as np
import pytest

from poptransformer.checkpoint import LazyArray, PackedBlocks
from poptransformer.parallel import Share, take
from poptransformer.quantization.checkpoints import packed_source

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [1, 31, 50, 61, 64, 100, 131, 1536, 50257])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7, 9])
def test_even_shares_cover_an_axis_once(size: int, replicas: int) -> None:
    shares = [Share.even(size, replica, replicas) for replica in range(replicas)]
    covered = [i for share in shares for first, end in share.ranges for i in range(first, end)]
    assert covered == list(range(size))
    assert len({share.size for share in shares}) == 1
    assert all(share.taken <= share.size for share in shares)


def test_what_is_not_divisible_is_cut_between_blocks() -> None:
    assert [Share.even(11008, replica, 3).ranges[0] for replica in range(3)] == [(0, 3680), (3680, 7360), (7360, 11008)]
    assert Share.even(1376, 3, 8).ranges == ((516, 688),), "an even division is taken as it is: heads end there"


def test_a_single_range_is_a_view() -> None:
    weight = np.arange(12.0).reshape(3, 4)
    part = take(weight, Share(((1, 3),), 2), Share.whole(4))
    assert np.shares_memory(part, weight)
    assert take(weight, Share.whole(3), Share.whole(4)) is weight


def test_pieces_and_zeros() -> None:
    weight = np.arange(24, dtype=np.float16).reshape(6, 4)
    part = take(weight, Share(((0, 1), (4, 6)), 5), Share(((2, 4),), 3))
    assert part.shape == (5, 3) and part.dtype == np.float16
    expected = np.zeros((5, 3), np.float16)
    expected[:3, :2] = weight[[0, 4, 5], 2:4]
    np.testing.assert_array_equal(np.asarray(part), expected)
    np.testing.assert_array_equal(np.asarray(part.T), expected.T)


def test_equal_pieces_are_filled_up_each() -> None:
    """A gate and what it multiplies, 5 rows each: the last of 2 replicas has 2 of each, and a zero behind both."""
    weight = np.arange(10.0).reshape(10, 1)
    parts = [take(weight, Share.even(5, replica, 2).repeated(2, 5), Share.whole(1)) for replica in range(2)]
    np.testing.assert_array_equal(np.asarray(parts[0]).ravel(), [0, 1, 2, 5, 6, 7])
    np.testing.assert_array_equal(np.asarray(parts[1]).ravel(), [3, 4, 0, 8, 9, 0])
    assert Share.whole(5).repeated(2, 5) == Share.whole(10)


def test_an_unread_array_stays_unread() -> None:
    reads = []

    def load() -> np.ndarray:
        reads.append(1)
        return np.arange(12, dtype=np.float32).reshape(3, 4)

    lazy = LazyArray(load, (3, 4))
    part = take(lazy.T, Share(((1, 3),), 2), Share(((0, 2),), 2))
    assert not reads and part.shape == (2, 2)
    np.testing.assert_array_equal(np.asarray(part), load().T[1:3, :2])


def q8_0(rows: int, depth: int) -> LazyArray:
    """A matrix in ggml's Q8_0: blocks of 32, an fp16 scale and 32 int8."""
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (rows, depth // 32, 32)).astype(np.int8)
    scales = random.uniform(0.01, 0.1, (rows, depth // 32, 1)).astype(np.float16)
    blocks = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], -1).reshape(rows * depth // 32, 34)
    values = (codes * scales.astype(np.float32)).reshape(rows, depth)
    packed = PackedBlocks("w", "Q8_0", rows, depth, {"blocks": lambda: blocks})
    return LazyArray(lambda: values, (rows, depth), packed)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (Share(((16, 32),), 16), Share.whole(128)),
        (Share.whole(48), Share(((32, 96),), 64)),
        (Share(((0, 8), (24, 32)), 16), Share(((64, 128),), 64)),
    ],
)
def test_packed_blocks_go_with_their_share(rows: Share, columns: Share) -> None:
    whole = q8_0(48, 128)
    part = take(whole, rows, columns)
    source = packed_source(part)
    assert source is not None and (source.columns, source.depth) == part.shape
    np.testing.assert_allclose(source.load().dequantize(), np.asarray(part), atol=1e-6)


@pytest.mark.parametrize("columns", [Share(((16, 96),), 80), Share(((96, 128),), 64)], ids=["cut", "zeros"])
def test_a_cut_through_blocks_gives_floats(columns: Share) -> None:
    part = take(q8_0(16, 128), Share.whole(16), columns)
    assert packed_source(part) is None
    first, end = columns.ranges[0]
    np.testing.assert_array_equal(np.asarray(part)[:, : end - first], np.asarray(q8_0(16, 128))[:, first:end])
