# SPDX-License-Identifier: Apache-2.0
"""The order that codes and scales of a packed weight lie in: tiles of 16 rows, chunks of 32 columns.

    codes   8 bits [Nt, Kt, 8, 16, 4]  [t, c, j, r, i] is row 16t + r, column 32c + 4j + i
            int4   [Nt, Kt, 4, 16, 4]  low nibbles are column 32c + 4j + i, high ones 16 columns further
    scales, offsets [Nt, Kb, 16]       [t, b, r] is row 16t + r, block b of the row

A kernel that works on 16 rows at a time so reads one stream of codes, four columns of each row together.
"""

from __future__ import annotations

import numpy as np

TILE = 16
CHUNK = 32


def padded(size: int, multiple: int) -> int:
    """Returns `size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def padded_depth(depth: int, block: int) -> int:
    """Returns K as it is stored: a multiple of the block, or of 32 where a block is a whole row."""
    return padded(depth, block if block > 0 else CHUNK)


def blocks_per_row(depth: int, block: int) -> int:
    """Returns Kb."""
    return padded(depth, block) // block if block > 0 else 1


def tile_codes(codes: np.ndarray, bits: int, zero: int, block: int) -> np.ndarray:
    """Brings codes from rows into tiles.

    Args:
        codes: uint8 `[N, K]`, one code each.
        bits: 4 or 8.
        zero: the code that pads.
        block: columns per scale, 0 for a whole row.

    Returns:
        uint8 `[Nt, Kt, 8 or 4, 16, 4]`.
    """
    rows, depth = codes.shape
    whole = (padded(rows, TILE), padded_depth(depth, block))
    if whole != codes.shape:
        codes = np.pad(codes, ((0, whole[0] - rows), (0, whole[1] - depth)), constant_values=zero)
    chunks = codes.reshape(-1, TILE, whole[1] // CHUNK, CHUNK)
    if bits == 4:
        chunks = chunks[..., : CHUNK // 2] | chunks[..., CHUNK // 2 :] << 4
    return tile_bytes(chunks)


def tile_bytes(chunks: np.ndarray) -> np.ndarray:
    """Brings the bytes of rows, `[Nt, 16, Kt, 32 or 16]`, into tiles `[Nt, Kt, 8 or 4, 16, 4]`."""
    groups = chunks.reshape(*chunks.shape[:3], -1, 4)
    return np.ascontiguousarray(groups.transpose(0, 2, 3, 1, 4))


def untile_codes(codes: np.ndarray, rows: int, depth: int) -> np.ndarray:
    """Returns codes in rows again, one in a byte: uint8 `[N, K]`; the opposite of `tile_codes`."""
    tiles, chunks, groups = codes.shape[:3]
    by_row = codes.transpose(0, 3, 1, 2, 4).reshape(tiles * TILE, chunks, groups * 4)
    if groups * 4 < CHUNK:
        by_row = np.concatenate((by_row & 15, by_row >> 4), axis=2)
    return by_row.reshape(tiles * TILE, chunks * CHUNK)[:rows, :depth]


def tile_scales(scales: np.ndarray) -> np.ndarray:
    """Brings scales or offsets from rows, `[N, Kb]`, into tiles `[Nt, Kb, 16]`."""
    rows, blocks = scales.shape
    if rows % TILE:
        scales = np.pad(scales, ((0, -rows % TILE), (0, 0)))
    return np.ascontiguousarray(scales.reshape(-1, TILE, blocks).transpose(0, 2, 1))


def untile_scales(scales: np.ndarray, rows: int) -> np.ndarray:
    """Returns scales or offsets in rows again, `[N, Kb]`."""
    return scales.transpose(0, 2, 1).reshape(-1, scales.shape[1])[:rows]
