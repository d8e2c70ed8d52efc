# SPDX-License-Identifier: Apache-2.0
"""The packed layout, read in plain loops from its description: element by element, sharing no code with the package."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from poptransformer.quantization import PackedWeight


def code_at(codes: np.ndarray, bits: int, row: int, column: int) -> int:
    """The code of one element: tile of 16 rows, chunk of 32 columns, groups of 4 columns."""
    t, r, c, inside = row // 16, row % 16, column // 32, column % 32
    if bits == 8:
        return int(codes[t, c, inside // 4, r, inside % 4])
    byte = int(codes[t, c, inside % 16 // 4, r, inside % 4])
    return byte & 15 if inside < 16 else byte >> 4


def value_at(packed: PackedWeight, row: int, column: int) -> np.float32:
    """What one element stands for."""
    bits = 4 if packed.format == "int4" else 8
    code = code_at(packed.codes, bits, row, column)
    block = column // packed.block if packed.block else 0
    scale = np.float32(packed.scales[row // 16, block, row % 16])
    if packed.format == "int4" and packed.offsets is not None:
        return np.float32(code) * scale + np.float32(packed.offsets[row // 16, block, row % 16])
    if packed.format in ("int4", "int8"):
        return np.float32(code - (8 if bits == 4 else 128)) * scale
    dtype = getattr(ml_dtypes, f"float8_{packed.format}")
    return np.uint8(code).view(dtype).astype(np.float32) * scale


def values(packed: PackedWeight) -> np.ndarray:
    """All elements, fp32 `[N, K]`."""
    rows = range(packed.columns)
    return np.array([[value_at(packed, row, column) for column in range(packed.depth)] for row in rows], np.float32)


def padding_codes(packed: PackedWeight) -> set[int]:
    """The codes of all elements that are not the weight's."""
    tiles, chunks = packed.codes.shape[:2]
    bits = 4 if packed.format == "int4" else 8
    return {
        code_at(packed.codes, bits, row, column)
        for row in range(tiles * 16)
        for column in range(chunks * 32)
        if row >= packed.columns or column >= packed.depth
    }


def relative_error(found: np.ndarray, weight: np.ndarray) -> float:
    """Root mean square of the difference, relative to the weight's."""
    return math.sqrt(np.square(found - weight, dtype=np.float64).sum() / np.square(weight, dtype=np.float64).sum())
