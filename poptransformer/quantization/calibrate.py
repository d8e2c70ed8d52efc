# SPDX-License-Identifier: Apache-2.0
"""Quantization that knows a weight's inputs: GPTQ (https://arxiv.org/abs/2210.17323).

Columns are rounded one after the other, and those still to come make up for the error of each as well as they can,
given how the inputs of columns go together. Scales are chosen before, by the search, with errors weighed by what is
left of them after that.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.quantization import layout
from poptransformer.quantization.activations import ActivationStats, Feedback
from poptransformer.quantization.encode import encode
from poptransformer.quantization.packed import PackedWeight
from poptransformer.quantization.spec import WeightSpec

# Columns that are rounded before their errors reach the rest, by matrix products.
_FEW_COLUMNS = 32


def encode_calibrated(
    weight: np.ndarray, spec: WeightSpec, stats: ActivationStats, name: str = "the weight"
) -> PackedWeight:
    """Quantizes a weight so that its product with the inputs that calibration saw changes least.

    With a hessian the columns make up for each other's errors; without one the inputs' mean squares weigh the search
    for scales. The result's `error` is still that of the weight, which grows while the product's shrinks.

    Args:
        weight: `[N, K]`.
        spec: as in `encode`.
        stats: of the weight's input.
        name: what errors call the weight.

    Raises:
        ConfigError: as in `encode`, or the statistics are those of another input.
    """
    weight = np.asarray(weight)  # A lazy one is read once.
    if stats.mean_square.shape != weight.shape[1:]:
        raise ConfigError(
            f"{name} has {weight.shape[1]} columns, but calibration saw an input of {len(stats.mean_square)}. "
            "Calibrate with the same model."
        )
    feedback = stats.feedback
    if feedback is None:
        return encode(weight, spec, stats.mean_square, name)
    plain = encode(weight, spec, feedback.importance, name)
    return _round_in_order(weight.astype(np.float32, copy=False), plain, feedback)


def _round_in_order(weight: np.ndarray, plain: PackedWeight, feedback: Feedback) -> PackedWeight:
    """Chooses the codes anew, for the scales that `plain` has."""
    columns = np.ascontiguousarray(weight.T[feedback.order])
    rounding = _Rounding(columns, plain, feedback)
    rounding.run(0, len(columns))
    codes = np.empty_like(rounding.codes)
    codes[feedback.order] = rounding.codes
    rounded = PackedWeight.from_rows(
        plain.format,
        np.ascontiguousarray(codes.T),
        layout.untile_scales(plain.scales, plain.columns),
        None if plain.offsets is None else layout.untile_scales(plain.offsets, plain.columns),
        block=plain.block,
        saturated=rounding.saturated,
    )
    difference = rounded.dequantize() - weight
    square = float(np.vdot(weight, weight))
    return dataclasses.replace(
        rounded, error=math.sqrt(float(np.vdot(difference, difference)) / square) if square else 0
    )


class _Rounding:
    """The columns of one weight on their way to codes.

    Attributes:
        codes: uint8 `[K, N]`, in the order of the columns.
        saturated: values beyond the format's range.
    """

    def __init__(self, columns: np.ndarray, plain: PackedWeight, feedback: Feedback) -> None:
        self.codes = np.empty(columns.shape, np.uint8)
        self.saturated = 0
        self._weights = columns  # fp32 [K, N]
        self._targets = columns.copy()  # the weights, and what makes up for the errors so far
        self._factor = feedback.factor
        self._kind = plain.kind
        self._has_offsets = plain.offsets is not None
        self._blocks = feedback.order // plain.block if plain.block > 0 else np.zeros_like(feedback.order)
        rows = plain.columns
        self._scales = np.ascontiguousarray(layout.untile_scales(plain.scales, rows).T, np.float32)
        self._inverses = np.divide(1, self._scales, out=np.zeros_like(self._scales), where=self._scales != 0)
        offsets = np.zeros_like(plain.scales) if plain.offsets is None else plain.offsets
        self._offsets = np.ascontiguousarray(layout.untile_scales(offsets, rows).T, np.float32)

    def run(self, begin: int, end: int) -> np.ndarray:
        """Rounds columns; returns their errors, fp32 `[end - begin, N]`.

        Halves of a range meet in one matrix product, so most of the work is products of large matrices.
        """
        if end - begin <= _FEW_COLUMNS:
            return self._run_few(begin, end)
        middle = (begin + end) // 2
        first = self.run(begin, middle)
        self._targets[middle:end] += self._factor[middle:end, begin:middle] @ first
        return np.concatenate((first, self.run(middle, end)))

    def _run_few(self, begin: int, end: int) -> np.ndarray:
        errors = self._weights[begin:end].copy()
        for index, error in zip(range(begin, end), errors, strict=True):
            error -= self._rounded(index)
            self._targets[index + 1 : end] += np.multiply.outer(self._factor[index + 1 : end, index], error)
        return errors

    def _rounded(self, index: int) -> np.ndarray:
        """Chooses the codes of a column; returns the values that they stand for, fp32 `[N]`."""
        block, values, kind = self._blocks[index], self._targets[index], self._kind
        scale, offset = self._scales[block], self._offsets[block]
        quotients = (values - offset if self._has_offsets else values) * self._inverses[block]
        if kind.dtype is not None:
            self.saturated += int(np.count_nonzero(np.abs(quotients) > kind.overflow))
            codes = np.clip(quotients, kind.least, kind.largest).astype(kind.dtype)
            self.codes[index] = codes.view(np.uint8)
            return codes.astype(np.float32) * scale
        least, largest = (0.0, 15.0) if self._has_offsets else (kind.least, kind.largest)
        nearest = np.rint(quotients)
        q = np.clip(nearest, least, largest)
        self.saturated += int(np.count_nonzero(nearest != q))
        self.codes[index] = q if self._has_offsets else q + kind.zero
        return q * scale + offset if self._has_offsets else q * scale
