# SPDX-License-Identifier: Apache-2.0
"""Positions in numbers, for the layers that train and the layers that build graphs: both must have the same ones."""

from __future__ import annotations

import math

import numpy as np

from poptransformer.build import check_choice
from poptransformer.errors import ConfigError

MAX_RELATIVE_POSITION = 128
POSITION_TYPES = ("learned", "fixed", "rotary", "relative", "alibi")


def fixed_positions(length: int, size: int, min_timescale: float = 1.0, max_timescale: float = 1.0e4) -> np.ndarray:
    """Returns sines and cosines, interleaved, fp32 `[length, size]`; an odd last column is 0.

    Source: tensor2tensor, `get_timing_signal_1d`; interleaved as in Cerebras Model Zoo 2.2.

    Raises:
        ConfigError: fewer than two timescales.
    """
    count = size // 2
    if count < 2:
        raise ConfigError(f"Fixed positions need an embedding size of at least 4, found {size}.")
    step = math.log(max_timescale / min_timescale) / (count - 1)
    frequencies = np.float32(min_timescale) * np.exp(np.arange(count, dtype=np.float32) * np.float32(-step))
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    table = np.zeros((length, size), np.float32)
    table[:, 0 : 2 * count : 2] = np.sin(angles)
    table[:, 1 : 2 * count : 2] = np.cos(angles)
    return table


def inverse_frequencies(theta: float, rotary_dim: int) -> np.ndarray:
    """Returns `theta ** (-2i / rotary_dim)`, fp32 `[rotary_dim / 2]` (RoFormer, https://arxiv.org/abs/2104.09864)."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(rotary_dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)


def relative_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Returns the bucket of each distance `key - query` from `-max_distance` to `max_distance`, int64.

    Half of the buckets (of each direction) are for one distance each, the others for ranges that grow with it; what is
    farther than `max_distance` is in the bucket of the last. Source: T5 (transformers T5Attention).

    Raises:
        ConfigError: too few buckets.
    """
    distances = np.arange(-max_distance, max_distance + 1, dtype=np.int64)
    if bidirectional:
        num_buckets //= 2
        first, distances = (distances > 0) * num_buckets, np.abs(distances)
    else:
        first, distances = np.zeros_like(distances), np.maximum(-distances, 0)
    exact = num_buckets // 2
    if exact < 1:
        raise ConfigError("Relative positions need 2 buckets, or 4 if they are bidirectional.")
    scaled = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact)) / math.log(max_distance / exact)
    far = exact + (scaled * (num_buckets - exact)).astype(np.int64)
    return first + np.where(distances < exact, distances, np.minimum(far, num_buckets - 1))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns the paper's slopes, fp32 `[num_heads, 1]` (https://arxiv.org/abs/2108.12409).

    For a number that is no power of two: those of the next lower one, then every other one of the next higher one.
    """

    def powers(count: int) -> list[float]:
        ratio = 2.0 ** (-8.0 / count)
        return [ratio ** (index + 1) for index in range(count)]

    lower = 2 ** int(math.log2(num_heads))
    slopes = powers(lower) + powers(2 * lower)[0::2][: num_heads - lower]
    return np.array(slopes, np.float32)[:, None]


def check_positions(
    kind: str | None,
    max_position_embeddings: int | None,
    offset: int,
    mask_padding: bool,
    num_heads: int | None,
    rotary_dim: int | None,
    scaling_factor: float,
) -> None:
    """Checks the arguments of an `EmbeddingLayer` that belong to one type of positions.

    Raises:
        ConfigError: the type is unknown, lacks an argument, or has one of another type.
    """
    if kind is None:
        return
    check_choice("position_embedding_type", kind, POSITION_TYPES)
    needs = {"max_position_embeddings": max_position_embeddings}
    if kind in ("relative", "alibi"):
        needs["num_heads"] = num_heads
    if kind == "rotary":
        needs["rotary_dim"] = rotary_dim
    for name, value in needs.items():
        if value is None or value < 1:
            raise ConfigError(f"position_embedding_type {kind} needs {name} of at least 1, found {value}.")
    if offset < 0 or (offset and kind != "learned"):
        raise ConfigError(
            f"position_embedding_offset must be 0, or above with learned positions, found {offset} with {kind}."
        )
    if mask_padding and kind != "learned":
        raise ConfigError(f"mask_padding_in_positional_embed needs learned positions, found {kind}.")
    if scaling_factor != 1.0 and kind not in ("rotary", "alibi"):
        raise ConfigError(f"pos_scaling_factor needs rotary or alibi positions, found {kind}.")
