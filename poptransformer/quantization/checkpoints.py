# SPDX-License-Identifier: Apache-2.0
"""Weights that a checkpoint holds in packed form, taken as they are: codes move, scales stay the stored numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.quantization import layout
from poptransformer.quantization.formats import format_of
from poptransformer.quantization.packed import PackedWeight
from poptransformer.quantization.spec import PER_CHANNEL

GGML_BLOCK = 32


@dataclass(frozen=True)
class PackedSource:
    """The packed weight behind an array, not yet read.

    Attributes:
        format: `int4` or `int8`.
        columns: N.
        depth: K.
        block: columns that share a scale; 0 is a whole row.
        symmetric: whether there are no offsets.
        load: makes the packed weight; reads the file.
    """

    format: str
    columns: int
    depth: int
    block: int
    symmetric: bool
    load: Callable[[], PackedWeight]


def packed_source(array: object) -> PackedSource | None:
    """Returns the packed weight that the checkpoint holds for an array `[N, K]`, or None.

    Args:
        array: what a layer bound, for example `WeightTensor.array` after `matmul_to_linear`.
    """
    blocks = getattr(array, "packed", None)
    if blocks is None or blocks.layout not in _LAYOUTS:
        return None
    format, block, symmetric, read = _LAYOUTS[blocks.layout]
    return PackedSource(format, blocks.rows, blocks.depth, block, symmetric, functools.partial(_load, read, blocks))


def _load(read: Callable[..., PackedWeight], blocks: Any) -> PackedWeight:
    packed = read(blocks.rows, blocks.depth, **{name: part() for name, part in blocks.parts.items()})
    numbers = [packed.scales] if packed.offsets is None else [packed.scales, packed.offsets]
    if not all(np.isfinite(array).all() for array in numbers):
        raise ConfigError(
            f"{blocks.name} has scales that are NaN or infinite. Download the checkpoint again, or convert it anew."
        )
    return packed


def _from_ggml(format: str, numbers: int, blocks: np.ndarray, rows: int, depth: int) -> PackedWeight:
    """Rearranges ggml blocks of 32: `numbers` fp16 (scale, smallest value), then 16 or 32 bytes of codes.

    ggml's nibbles pair columns j and j + 16 of a block as our layout does, so whole bytes move.
    """
    split = blocks.reshape(rows, depth // GGML_BLOCK, -1)
    heads = np.ascontiguousarray(split[..., : 2 * numbers]).view(np.float16)
    codes = split[..., 2 * numbers :]
    kind = format_of(format)
    if kind.bits == 8:
        codes = codes ^ np.uint8(kind.zero)  # int8 to code: 128 more
    if rows % layout.TILE:
        pad = kind.zero if kind.bits == 8 else kind.zero * 0x11
        codes = np.pad(codes, ((0, -rows % layout.TILE), (0, 0), (0, 0)), constant_values=pad)
    tiles = layout.tile_bytes(codes.reshape(-1, layout.TILE, *codes.shape[1:]))
    scales, *rest = (layout.tile_scales(heads[..., index]) for index in range(numbers))
    return PackedWeight(format, rows, depth, GGML_BLOCK, tiles, scales, rest[0] if rest else None)


def _from_q4_0(rows: int, depth: int, blocks: np.ndarray) -> PackedWeight:
    return _from_ggml("int4", 1, blocks, rows, depth)


def _from_q4_1(rows: int, depth: int, blocks: np.ndarray) -> PackedWeight:
    return _from_ggml("int4", 2, blocks, rows, depth)


def _from_q8_0(rows: int, depth: int, blocks: np.ndarray) -> PackedWeight:
    return _from_ggml("int8", 1, blocks, rows, depth)


def _from_int4_rows(rows: int, depth: int, codes: np.ndarray, scales: np.ndarray) -> PackedWeight:
    # Of a byte, the high half is the even column: signed numbers become codes by adding 8, which flips the sign bit.
    nibbles = codes.view(np.uint8) ^ np.uint8(0x88)
    by_row = np.stack((nibbles >> 4, nibbles & 15), axis=2).reshape(rows, depth)
    return PackedWeight.from_rows("int4", by_row, scales[:, None], block=PER_CHANNEL)


def _from_int8_rows(rows: int, depth: int, codes: np.ndarray, scales: np.ndarray) -> PackedWeight:
    by_row = codes.view(np.uint8).reshape(rows, depth) ^ np.uint8(128)
    return PackedWeight.from_rows("int8", by_row, scales[:, None], block=PER_CHANNEL)


# Layout: format, block, symmetric, reader.
_LAYOUTS: dict[str, tuple[str, int, bool, Callable[..., PackedWeight]]] = {
    "Q4_0": ("int4", GGML_BLOCK, True, _from_q4_0),
    "Q4_1": ("int4", GGML_BLOCK, False, _from_q4_1),
    "Q8_0": ("int8", GGML_BLOCK, True, _from_q8_0),
    "int4-rows": ("int4", PER_CHANNEL, True, _from_int4_rows),
    "int8-rows": ("int8", PER_CHANNEL, True, _from_int8_rows),
}
