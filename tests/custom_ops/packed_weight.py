# SPDX-License-Identifier: Apache-2.0
"""Packed integer weights made of chosen values, and what a product with them must give."""

from __future__ import annotations

import dataclasses

import numpy as np

CHUNK = 32
TILE = 16
ZERO = {"int4": 8, "int8": 128}


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclasses.dataclass
class PackedWeight:
    """Codes `[N, K]` of a weight, with scales and offsets `[N, blocks]`; `packed` lays them out in tiles of 16 rows."""

    format: str
    block: int
    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None

    @property
    def columns(self) -> int:
        return self.codes.shape[0]

    def spread(self, by_block: np.ndarray) -> np.ndarray:
        """[N, blocks] to [N, K] in float64."""
        return np.repeat(by_block.astype(np.float64), self.block, axis=1)[:, : self.codes.shape[1]]

    def values(self) -> np.ndarray:
        """What the codes stand for, in float64."""
        if self.offsets is not None:
            return self.codes * self.spread(self.scales) + self.spread(self.offsets)
        return (self.codes - float(ZERO[self.format])) * self.spread(self.scales)

    def packed(self) -> dict[str, np.ndarray]:
        """The op's inputs by name."""
        N, K = self.codes.shape
        rows, columns = round_up(N, TILE), round_up(K, self.block)
        padding = 0 if self.offsets is not None else ZERO[self.format]
        codes = np.full((rows, columns), padding, np.uint8)
        codes[:N, :K] = self.codes
        # Axes: tile, row; chunk, half of a chunk or its quarter (j), column (i).
        if self.format == "int8":
            laid = codes.reshape(rows // TILE, TILE, columns // CHUNK, 8, 4).transpose(0, 2, 3, 1, 4)
        else:
            split = codes.reshape(rows // TILE, TILE, columns // CHUNK, 2, 4, 4)
            laid = (split[:, :, :, 0] | split[:, :, :, 1] << 4).transpose(0, 2, 3, 1, 4)
        arrays = {"codes": np.ascontiguousarray(laid), "scales": self._tiles(self.scales)}
        if self.offsets is not None:
            arrays["offsets"] = self._tiles(self.offsets)
        return arrays

    def _tiles(self, by_block: np.ndarray) -> np.ndarray:
        padded = np.zeros((round_up(self.columns, TILE), by_block.shape[1]), np.float16)
        padded[: self.columns] = by_block
        return np.ascontiguousarray(padded.reshape(len(padded) // TILE, TILE, by_block.shape[1]).transpose(0, 2, 1))


def draw_weight(format: str, N: int, K: int, block: int | None, offsets: bool = False, seed: int = 0) -> PackedWeight:
    """A random weight; `block` None is one block per row. Every code occurs, scales differ a lot."""
    random = np.random.default_rng(seed)
    block = block or round_up(K, CHUNK)
    shape = (N, round_up(K, block) // block)
    codes = random.integers(0, 16 if format == "int4" else 256, (N, K), dtype=np.uint8)
    scales = np.exp(random.uniform(-6, -2, shape)).astype(np.float16)
    low = random.normal(0, 0.3, shape).astype(np.float16) if offsets else None
    return PackedWeight(format, block, codes, scales, low)


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel makes of x `[M, K]`: integers `[M, K]` as float64, and their fp32 scales `[M, chunks]`."""
    M, K = x.shape
    chunks = np.zeros((M, round_up(K, CHUNK)), np.float32)
    chunks[:, :K] = x
    chunks = chunks.reshape(M, round_up(K, CHUNK) // CHUNK, CHUNK)
    greatest = np.abs(chunks).max(axis=2)
    counts = greatest >= np.float32(2.0**-100)
    divisor = np.where(counts, greatest, np.float32(1))
    factor = np.where(counts, np.float32(127) / divisor, np.float32(0))
    codes = np.rint(chunks * factor[:, :, None]).reshape(M, round_up(K, CHUNK))[:, :K]
    return codes.astype(np.float64), np.where(counts, greatest / np.float32(127), np.float32(0))


def rounded(x: np.ndarray) -> np.ndarray:
    """x after rounding to int8 and back, in float64."""
    codes, scales = quantize_rows(x)
    return codes * np.repeat(scales.astype(np.float64), CHUNK, axis=1)[:, : x.shape[1]]


def rounding_bound(x: np.ndarray, weight: PackedWeight) -> np.ndarray:
    """How far off the rounding of x may bring each result: s / 2 * sum|w|, added over the blocks of 32 columns.

    Each value of x moves by at most s / 2, so a result moves by at most the sum of s / 2 * |w| over its columns. In
    fp32 the codes themselves come from a product with two roundings, 2^-23 of at most 127, which may tip a tie.
    """
    _, scales = quantize_rows(x)
    steps = np.repeat(scales.astype(np.float64), CHUNK, axis=1)[:, : x.shape[1]]
    return steps * (0.5 + 127 * 2.0**-22) @ np.abs(weight.values()).T
