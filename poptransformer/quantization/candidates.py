# SPDX-License-Identifier: Apache-2.0
"""The scales that the search tries, as factors of what a block's values ask for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from poptransformer.quantization.spec import WeightSpec

# How far below the largest value scales are tried: in long blocks it lies further out, and cutting it off pays more.
_LOWEST = {32: 0.70, 64: 0.65, 128: 0.60, 0: 0.40}
_DEEPEST = {32: 0.14, 64: 0.18, 128: 0.22, 0: 0.34}


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the search tries for each block; ties go to the first.

    Attributes:
        values: fp32. Symmetric: factors `[C]` of the base scale. With offsets: `[C, 2]`, pairs (a, b) for the offset
            m + a w and the scale b w, where m is the block's smallest value and w its width.
        refits: least-squares corrections of the best scale afterwards.
        end_divisor: the base scale is the block's largest magnitude through this number. A negative one keeps the
            sign: then the value of the largest magnitude gets int4's code for -8, of which there is no positive.
    """

    values: np.ndarray
    refits: int
    end_divisor: float


@functools.cache
def candidates(spec: WeightSpec) -> Candidates:
    """Returns what to try for a spec; the first one is what `minmax` takes, which cuts nothing off."""
    search = spec.scale_method == "search"
    if not spec.symmetric:
        values = _pairs(_DEEPEST[spec.block]) if search else _pairs(None)
        return Candidates(values, 2 if search else 0, 1.0)
    if spec.format == "int4":
        factors = [8 / 7]
        if search:
            grid = np.linspace(_LOWEST[spec.block], 1.15, 12)
            factors += [*grid, *-grid]
        return Candidates(np.array(factors, np.float32), 2 if search else 0, -8.0)
    if spec.format == "int8":
        factors = [1.0, *np.linspace(0.97 if spec.block else 0.85, 0.996, 6)] if search else [1.0]
        return Candidates(np.array(factors, np.float32), 1 if search else 0, spec.kind.largest)
    factors = [1.0]
    if search:
        # Twice the scale is the same rounding, but for subnormals and saturation: an octave has every case.
        factors = [1.0, 0.5, 2.0] if spec.power_of_two else [2 ** (step / 8) for step in range(8)]
    return Candidates(np.array(factors, np.float32), 0, spec.kind.largest)


def _pairs(deepest: float | None) -> np.ndarray:
    """Pairs (a, b): a grid of how much to cut off at either end, as shares of the width."""
    grid = [] if deepest is None else np.linspace(-0.02, deepest, 5)
    return np.array([(0, 1 / 15), *((low, (1 - low - high) / 15) for low in grid for high in grid)], np.float32)
