# SPDX-License-Identifier: Apache-2.0
"""One replica's share of a weight: which rows and columns it has, taken without reading more than those."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from poptransformer.checkpoint import LazyArray, PackedBlocks

# Columns that one scale of a quantized weight covers, at least: a share that begins elsewhere gets other scales than
# the whole weight has.
BLOCK = 32
# Columns that a packed layout can be cut between.
_CUTS = {"int4-rows": 2, "int8-rows": 1}


@dataclasses.dataclass(frozen=True)
class Share:
    """Positions along one axis, in order, filled up with zeros to `size`.

    All replicas' shares of an axis have the same size: they run the same graph.

    Attributes:
        ranges: first position and end of each piece.
        size: positions, the zeros included.
        has_equal_pieces: whether each piece is filled up to the same size; otherwise all zeros are behind the last.
    """

    ranges: tuple[tuple[int, int], ...]
    size: int
    has_equal_pieces: bool = False

    @classmethod
    def whole(cls, size: int) -> Share:
        """All of an axis."""
        return cls(((0, size),), size)

    @classmethod
    def even(cls, size: int, replica: int, replicas: int) -> Share:
        """The share of one replica of several that have equally much; the last ones may be filled up with zeros.

        What cannot be divided evenly is cut at multiples of 32, so that blocks of quantized weights stay whole.
        """
        each = -(-size // replicas)
        if size % replicas:
            aligned = -(-each // BLOCK) * BLOCK
            each = aligned if aligned * (replicas - 1) < size else each
        first = min(size, replica * each)
        return cls(((first, min(size, first + each)),), each)

    def repeated(self, count: int, distance: int) -> Share:
        """This share of each of several parts of an axis, which begin `distance` apart."""
        starts = range(0, count * distance, distance)
        ranges = tuple((start + first, start + end) for start in starts for first, end in self.ranges)
        if all(end - first == distance for first, end in ranges):
            return Share.whole(count * distance)
        return Share(ranges, count * self.size, has_equal_pieces=True)

    @property
    def taken(self) -> int:
        """Positions without the zeros."""
        return sum(end - first for first, end in self.ranges)

    @property
    def zeros(self) -> list[int]:
        """Zeros behind each piece."""
        if self.has_equal_pieces:
            each = self.size // len(self.ranges)
            return [each - (end - first) for first, end in self.ranges]
        return [*(0 for _ in self.ranges[1:]), self.size - self.taken]

    def is_whole(self, size: int) -> bool:
        """Whether this is all of an axis of that size."""
        return self == Share.whole(size)


def take(array: Any, *shares: Share) -> Any:
    """Returns a share of an array: a view where that can be, and else an array that is made when it is read.

    Args:
        array: a checkpoint's array, read or not (`LazyArray`).
        *shares: one for each axis.
    """
    if all(share.is_whole(size) for share, size in zip(shares, array.shape, strict=True)):
        return array
    if isinstance(array, np.ndarray) and all(len(share.ranges) == 1 and share.taken == share.size for share in shares):
        return array[tuple(slice(*share.ranges[0]) for share in shares)]
    if isinstance(array, LazyArray) and array.is_transposed:
        return take(array.T, *shares[::-1]).T
    return LazyArray(
        functools.partial(_read, array, shares),
        tuple(share.size for share in shares),
        _packed_share(array.packed, *shares) if isinstance(array, LazyArray) and array.packed else None,
        stored=getattr(array, "stored", array),
        dtype=array.dtype,
    )


def _read(array: np.ndarray, shares: Sequence[Share]) -> np.ndarray:
    values = np.asarray(array)
    for axis, share in enumerate(shares):
        if not share.is_whole(values.shape[axis]):
            values = _cut(values, axis, share)
    return np.ascontiguousarray(values)


def _cut(values: np.ndarray, axis: int, share: Share) -> np.ndarray:
    before, behind = values.shape[:axis], values.shape[axis + 1 :]
    pieces = []
    for (first, end), missing in zip(share.ranges, share.zeros, strict=True):
        pieces.append(values[(*(slice(None),) * axis, slice(first, end))])
        if missing:
            pieces.append(np.zeros((*before, missing, *behind), values.dtype))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)


def _packed_share(blocks: PackedBlocks, rows: Share, columns: Share) -> PackedBlocks | None:
    """The packed blocks of a share; None where cuts go through blocks, or zeros are missing."""
    cut = _CUTS.get(blocks.layout, BLOCK)
    if rows.taken < rows.size or columns.taken < columns.size or len(columns.ranges) > 1:
        return None
    first, end = columns.ranges[0]
    if first % cut or (end % cut and end != blocks.depth):
        return None

    def part(read: Callable[[], np.ndarray]) -> np.ndarray:
        stored = read()
        by_row = stored.reshape(blocks.rows, -1)
        width = by_row.shape[1]
        if width > 1:
            by_row = by_row[:, first * width // blocks.depth : math.ceil(end * width / blocks.depth)]
        kept = np.concatenate([by_row[slice(*piece)] for piece in rows.ranges])
        return kept.reshape(-1) if stored.ndim == 1 else kept

    parts: dict[str, Any] = {name: functools.partial(part, read) for name, read in blocks.parts.items()}
    return PackedBlocks(blocks.name, blocks.layout, rows.size, columns.size, parts)
