# SPDX-License-Identifier: Apache-2.0
"""The encoder in NumPy: what runs without the native library, and what it is tested against, bit for bit.

It does the same as custom_ops/encode/tile.inl in the same order: all arithmetic is fp32, sums over a block's columns go
from the first to the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poptransformer.quantization.candidates import Candidates
from poptransformer.quantization.formats import Format

_LEAST_NORMAL = np.float32(2.0**-126)
_HALF_MAX = np.float32(65504)
_LEAST_POWER, _LARGEST_POWER = np.float32(2.0**-32), np.float32(2.0**31)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of a weight in blocks, and how to encode them. Columns come first: R rows, Kb blocks of n columns.

    Attributes:
        x: fp32 `[n, R, Kb]`, zero where it is padding.
        weights: fp32 `[n, 1, Kb]`, of squared errors; zero where it is padding.
        real: fp32 `[n, 1, Kb]`, one, or zero where it is padding.
        format: what to round to.
        offsets: whether blocks have an offset.
        power_of_two: whether scales are powers of two.
    """

    x: np.ndarray
    weights: np.ndarray
    real: np.ndarray
    format: Format
    offsets: bool
    power_of_two: bool

    def quotients(self, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The values in steps of the scale."""
        return (self.x - offset if self.offsets else self.x) * _inverse(scale)

    def rounded(self, quotients: np.ndarray) -> np.ndarray:
        """The nearest values of the format."""
        low, high = (0.0, 15.0) if self.offsets else (self.format.least, self.format.largest)
        clipped = np.clip(quotients, np.float32(low), np.float32(high))
        return np.rint(clipped) if self.format.dtype is None else clipped.astype(self.format.dtype).astype(np.float32)

    def stored(self, scale: np.ndarray) -> np.ndarray:
        """A scale as it can be stored."""
        if self.power_of_two:
            return np.clip(scale, _LEAST_POWER, _LARGEST_POWER)
        return scale if self.format.is_float8 else _round_half(scale)

    def errors(self, q: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """What is missing from the rounded values."""
        return self.x - (q * scale + offset if self.offsets else q * scale)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Blocks after encoding.

    Attributes:
        codes: uint8 `[n, R, Kb]`.
        scale: fp32 `[R, Kb]`, numbers of the type that is stored.
        offset: fp32 `[R, Kb]` or None.
        row_errors: float64 `[R]`, sums of squared errors.
        row_costs: float64 `[R]`, the same weighed.
        row_saturated: int64 `[R]`, values beyond the format's range.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None
    row_errors: np.ndarray
    row_costs: np.ndarray
    row_saturated: np.ndarray


def encode_blocks(blocks: Blocks, candidates: Candidates, base: float | None = None) -> Encoded:
    """Chooses scales and encodes.

    Args:
        blocks: the values.
        candidates: what to try.
        base: the base scale of all blocks; None takes each from its values.
    """
    with np.errstate(all="ignore"):  # Sums may overflow; such a candidate is not better than another.
        best = _search_both(blocks, candidates) if blocks.offsets else _search_scale(blocks, candidates, base)
        quotients = blocks.quotients(best.scale, best.offset)
        q = blocks.rounded(quotients)
        e = blocks.errors(q, best.scale, best.offset)
        kind = blocks.format
        if kind.dtype is not None:
            beyond = np.abs(quotients) > np.float32(kind.overflow)
            codes = q.astype(kind.dtype).view(np.uint8)
        else:
            beyond = np.rint(quotients) != q
            codes = (q + np.float32(0 if blocks.offsets else kind.zero)).astype(np.uint8)
        beyond &= blocks.real != 0
        return Encoded(
            np.where(blocks.real != 0, codes, np.uint8(kind.zero)),
            best.scale,
            best.offset if blocks.offsets else None,
            _by_row(_sum(blocks.real * e * e)),
            _by_row(_sum(blocks.weights * e * e)),
            beyond.sum(axis=(0, 2)),
        )


@dataclass(eq=False)
class _Choice:
    scale: np.ndarray
    offset: np.ndarray  # zero where blocks have none
    cost: np.ndarray

    def keep_better(self, scale: np.ndarray, offset: np.ndarray, cost: np.ndarray) -> None:
        better = cost < self.cost
        self.scale = np.where(better, scale, self.scale)
        self.offset = np.where(better, offset, self.offset)
        self.cost = np.where(better, cost, self.cost)


def _search_scale(blocks: Blocks, candidates: Candidates, base: float | None) -> _Choice:
    start = _base_scale(blocks, candidates) if base is None else np.full(blocks.x.shape[1:], base, np.float32)
    first, *others = (blocks.stored(start * factor) for factor in candidates.values)
    none = np.zeros_like(first)
    choice = _Choice(first, none, _cost(blocks, first, none)[0])
    for scale in others:
        choice.keep_better(scale, none, _cost(blocks, scale, none)[0])
    for _ in range(candidates.refits):
        _, sums = _cost(blocks, choice.scale, none, statistics=True)
        scale = blocks.stored(choice.scale + _ratio(sums.qe, sums.qq))
        choice.keep_better(scale, none, _cost(blocks, scale, none)[0])
    return choice


def _search_both(blocks: Blocks, candidates: Candidates) -> _Choice:
    inside = np.where(blocks.real != 0, blocks.x, blocks.x[:1])  # A block's first column is never padding.
    low, high = inside.min(axis=0), inside.max(axis=0)
    width = np.minimum(high - low, np.finfo(np.float32).max)
    choice = _Choice(low, low, np.full_like(low, np.nan))
    for index, (shift, factor) in enumerate(candidates.values):
        offset, scale = _round_half(low + width * shift), _round_half(width * factor)
        cost, sums = _cost(blocks, scale, offset, statistics=True)
        if index == 0:
            choice = _Choice(scale, offset, cost)
        choice.keep_better(scale, offset, cost)
        if candidates.refits:
            _refit_both(blocks, scale, offset, sums, choice)
    for _ in range(candidates.refits):
        scale, offset = choice.scale, choice.offset
        _, sums = _cost(blocks, scale, offset, statistics=True)
        _refit_both(blocks, scale, offset, sums, choice)
    return choice


@dataclass(frozen=True, eq=False)
class _Sums:
    """Weighted sums over a block's columns, with code q and error e."""

    e: np.ndarray
    qe: np.ndarray
    q: np.ndarray
    qq: np.ndarray
    w: np.ndarray


_NOTHING = np.zeros((), np.float32)
_NO_SUMS = _Sums(*[_NOTHING] * 5)


def _cost(blocks: Blocks, scale: np.ndarray, offset: np.ndarray, statistics: bool = False) -> tuple[np.ndarray, _Sums]:
    """The weighted squared error of a choice of scales, and what a least-squares fit needs."""
    q = blocks.rounded(blocks.quotients(scale, offset))
    e = blocks.errors(q, scale, offset)
    we = blocks.weights * e
    cost = _sum(we * e)
    if not statistics:
        return cost, _NO_SUMS
    wq = blocks.weights * q
    return cost, _Sums(_sum(we), _sum(we * q), _sum(wq), _sum(wq * q), _sum(blocks.weights))


def _refit_both(blocks: Blocks, scale: np.ndarray, offset: np.ndarray, sums: _Sums, choice: _Choice) -> None:
    """Solves for the scale and offset that fit the codes best, and keeps them if they are better."""
    by = _ratio(sums.w * sums.qe - sums.q * sums.e, sums.w * sums.qq - sums.q * sums.q)
    shift = _ratio(sums.e - by * sums.q, np.broadcast_to(sums.w, by.shape))
    new_scale, new_offset = _round_half(scale + by), _round_half(offset + shift)
    choice.keep_better(new_scale, new_offset, _cost(blocks, new_scale, new_offset)[0])


def _base_scale(blocks: Blocks, candidates: Candidates) -> np.ndarray:
    extreme = np.take_along_axis(blocks.x, np.abs(blocks.x).argmax(axis=0)[None], axis=0)[0]
    base = (extreme if candidates.end_divisor < 0 else np.abs(extreme)) / np.float32(candidates.end_divisor)
    return power_of_two(base) if blocks.power_of_two else base


def power_of_two(scale: np.ndarray) -> np.ndarray:
    """Returns the next powers of two that are not below the scales, from 2^-32 to 2^31."""
    bits = np.array(scale, np.float32).view(np.int32)
    up = (bits & 0x7F800000) + np.where(bits & 0x7FFFFF, np.int32(0x800000), np.int32(0))
    return np.clip(up.view(np.float32), _LEAST_POWER, _LARGEST_POWER)


def _sum(values: np.ndarray) -> np.ndarray:
    """Sums over the columns one after the other; `numpy.sum` may choose another order."""
    total = np.zeros(values.shape[1:], np.float32)
    for column in values:
        total += column
    return total


def _by_row(block_sums: np.ndarray) -> np.ndarray:
    total = np.zeros(block_sums.shape[0], np.float64)
    for block in block_sums.T:
        total += block
    return total


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, or 0 where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale; 0 where the scale is too small to have a finite inverse."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) >= _LEAST_NORMAL)


def _round_half(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16).astype(np.float32)
