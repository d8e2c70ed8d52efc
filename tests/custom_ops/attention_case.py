# SPDX-License-Identifier: Apache-2.0
"""One call of an attention op: its inputs, and what NumPy makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
from onnx import helper

CACHES = {"float32": np.float32, "float16": np.float16, "uint8": np.uint8}


def stored(x: np.ndarray, cache: str) -> np.ndarray:
    """What the cache holds for `x`; codes of E4M3FN as ml_dtypes has them."""
    if cache == "uint8":  # ml_dtypes does not saturate
        return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    with np.errstate(over="ignore"):
        return x.astype(CACHES[cache])


def read(x: np.ndarray) -> np.ndarray:
    """The values of a cache, float64."""
    return (x.view(ml_dtypes.float8_e4m3fn) if x.dtype == np.uint8 else x).astype(np.float64)


@dataclasses.dataclass
class Case:
    """Sizes by the legend of this project, each row's past length, and what the op is told."""

    B: int
    L: int
    N: int
    K: int
    H: int
    S: int
    past: list[int]
    cache: str = "float32"
    rotary_dim: int = 0  # 0 rotates nothing: CachedAttention
    interleaved: bool = False
    scale: float = 0.3
    prefix: list[int] | None = None  # tokens that all of a row see

    def __str__(self) -> str:
        rotary = f"-rotary{self.rotary_dim}{'i' * self.interleaved}" if self.rotary_dim else ""
        prefix = "" if self.prefix is None else f"-prefix{max(self.prefix)}"
        return f"{self.cache}-B{self.B}L{self.L}N{self.N}K{self.K}H{self.H}S{self.S}{rotary}{prefix}"

    @property
    def op(self) -> str:
        return "RotaryCachedAttention" if self.rotary_dim else "CachedAttention"

    @property
    def attributes(self) -> dict[str, Any]:
        rotary = {"rotary_dim": self.rotary_dim, "interleaved": int(self.interleaved)} if self.rotary_dim else {}
        cache_format = {"cache_format": "e4m3fn"} if self.cache == "uint8" else {}
        return {"num_heads": self.N, "num_kv_heads": self.K, "scale": self.scale, **rotary, **cache_format}

    @property
    def output_types(self) -> list[int]:
        cache = helper.np_dtype_to_tensor_dtype(np.dtype(CACHES[self.cache]))
        return [helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)), cache, cache]

    @property
    def first_cache(self) -> int:
        """Number of the input `past_key`."""
        return 5 if self.rotary_dim else 3

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        draw = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
        heads = [draw(self.B, self.L, count * self.H) for count in (self.N, self.K, self.K)]
        caches = [stored(draw(self.B, self.K, self.S, self.H), self.cache) for _ in range(2)]
        angles = 9 * draw(self.B, self.L, self.rotary_dim // 2)
        rotary = [np.cos(angles), np.sin(angles)] if self.rotary_dim else []
        prefix = [] if self.prefix is None else [np.array(self.prefix, np.int64)]
        return [*heads, *rotary, *caches, np.array(self.past, np.int64), *prefix]

    def rotated(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """`x` `[B, L, heads, H]` with its pairs rotated, in float64."""
        out, half = x.astype(np.float64), self.rotary_dim // 2
        pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if not self.interleaved:
            pairs = (slice(0, half), slice(half, 2 * half))
        first, second = (x[..., pair].astype(np.float64) for pair in pairs)
        cos, sin = cos[:, :, None], sin[:, :, None]
        out[..., pairs[0]], out[..., pairs[1]] = first * cos - second * sin, first * sin + second * cos
        return out

    def presents(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """The caches after the step."""
        key, value = (x.reshape(self.B, self.L, self.K, self.H) for x in inputs[1:3])
        if self.rotary_dim:
            key = self.rotated(key, *inputs[3:5]).astype(np.float32)
        presents = []
        for past, new in zip(inputs[self.first_cache :][:2], (key, value), strict=True):
            presents.append(past.copy())
            for b, start in enumerate(self.past):
                presents[-1][b, :, start : start + self.L] = stored(new[b].swapaxes(0, 1), self.cache)
        return presents

    def output(self, inputs: list[np.ndarray], present_key: np.ndarray, present_value: np.ndarray) -> np.ndarray:
        """What attention to these caches gives, in float64."""
        query = inputs[0].reshape(self.B, self.L, self.N, self.H).astype(np.float64)
        if self.rotary_dim:
            query = self.rotated(query, *inputs[3:5])
        keys, values = read(present_key), read(present_value)
        output = np.zeros((self.B, self.L, self.N, self.H))
        for b, i, n in np.ndindex(self.B, self.L, self.N):
            kv = n // (self.N // self.K)
            seen = slice(0, max(self.past[b] + i + 1, self.prefix[b] if self.prefix else 0))
            scores = self.scale * keys[b, kv, seen] @ query[b, i, n]
            weights = np.exp(scores - scores.max())
            output[b, i, n] = weights @ values[b, kv, seen] / weights.sum()
        return output.reshape(self.B, self.L, self.N * self.H)
