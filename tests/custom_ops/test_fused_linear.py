# SPDX-License-Identifier: Apache-2.0
"""FusedLinear against numpy in float64: formats, norms, activations, shapes, threads, instruction sets, errors."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
FLOAT8 = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
FORMATS = [*FLOATS, "int4", "int4-offsets", "int8", *FLOAT8]
ACTIVATIONS = {
    "none": lambda x: x,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
EPSILON = 1e-5


@dataclasses.dataclass
class Weight:
    """One projection's inputs, and the values that its codes stand for."""

    format: str  # as the op's attribute says it
    inputs: list[np.ndarray | None]  # weight, scales, offsets, bias
    values: np.ndarray  # float64 [N, K]

    @property
    def bias(self) -> np.ndarray | float:
        return 0.0 if self.inputs[3] is None else self.inputs[3]


def weight(format: str, N: int, K: int, *, bias: bool = True, block: int = 32, seed: int = 0) -> Weight:
    random = np.random.default_rng(seed)
    offset = random.standard_normal(N, np.float32) if bias else None
    if format in FLOATS:
        matrix = random.standard_normal((N, K), np.float32).astype(FLOATS[format])
        return Weight("float", [matrix, None, None, offset], matrix.astype(np.float64))
    name = format.removesuffix("-offsets")
    tiles, blocks = -(-N // 16), -(-K // block)
    rows = random.integers(0, 16 if name == "int4" else 256, (tiles * 16, blocks * block)).astype(np.uint8)
    scale_type = np.float32 if name in FLOAT8 else np.float16
    scales = random.uniform(0.001, 0.01, (tiles * 16, blocks)).astype(scale_type)
    offsets = random.standard_normal((tiles * 16, blocks)).astype(np.float16) if name != format else None
    if name in FLOAT8:
        values = rows.view(FLOAT8[name]).astype(np.float64)
        rows[~np.isfinite(values)] = 1
        values = rows.view(FLOAT8[name]).astype(np.float64)
    else:
        values = rows.astype(np.float64) - (0 if offsets is not None else {"int4": 8, "int8": 128}[name])
    values = values.reshape(len(rows), blocks, block) * scales[..., None]
    if offsets is not None:
        values += offsets[..., None]
    tiled = rows.reshape(tiles, 16, -1, 8, 4).transpose(0, 2, 3, 1, 4)
    codes = tiled[:, :, :4] | tiled[:, :, 4:] << 4 if name == "int4" else tiled
    by_tile = [None if a is None else a.reshape(tiles, 16, blocks).transpose(0, 2, 1).copy() for a in (scales, offsets)]
    return Weight(name, [np.ascontiguousarray(codes), *by_tile, offset], values.reshape(len(rows), -1)[:N, :K])


@dataclasses.dataclass
class Case:
    """A node, its inputs and what it should give."""

    x: np.ndarray
    weights: list[Weight]
    norm: str = "none"
    activation: str = "none"
    gated: bool = False
    residual: bool = False

    @functools.cached_property
    def head(self) -> list[np.ndarray | None]:
        """x, norm_weight, norm_bias, residual."""
        random = np.random.default_rng(5)
        K, N = self.x.shape[-1], self.weights[0].values.shape[0]
        scale = None if self.norm == "none" else random.standard_normal(K, np.float32)
        shift = random.standard_normal(K, np.float32) if self.norm == "layer" else None
        added = random.standard_normal((*self.x.shape[:-1], N), np.float32) if self.residual else None
        return [self.x, scale, shift, added]

    @property
    def inputs(self) -> list[np.ndarray | None]:
        return [*self.head, *(array for weight in self.weights for array in weight.inputs)]

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "norm": self.norm,
            "epsilon": EPSILON,
            "activation": self.activation,
            "gated": int(self.gated),
            "formats": " ".join(weight.format for weight in self.weights),
            "columns": [len(weight.values) for weight in self.weights],
        }

    @property
    def outputs(self) -> int:
        return 1 if self.gated else len(self.weights)

    def rows(self) -> np.ndarray:
        """The rows that are multiplied, float64."""
        x = self.x.astype(np.float64)
        _, scale, shift, _ = self.head
        if self.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        if scale is not None:
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * scale
        return x if shift is None else x + shift

    def expected(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Outputs, and for each value how far the kernel may be off."""
        rows = self.rows()
        products = [rows @ weight.values.T + weight.bias for weight in self.weights]
        errors = [slack(rows, weight) for weight in self.weights]
        function = ACTIVATIONS[self.activation]
        if self.activation != "none":
            errors[0] = 1.2 * errors[0] + 2e-6 * np.abs(function(products[0]))  # no slope is above 1.13
            products[0] = function(products[0])
        if self.gated:
            error = errors[0] * (np.abs(products[1]) + errors[1]) + errors[1] * np.abs(products[0])
            products, errors = [products[0] * products[1]], [error]
        if self.residual:
            products[0] = products[0] + self.head[3]
        return products, [error + 1e-6 * (1 + np.abs(y)) for y, error in zip(products, errors, strict=True)]


def slack(rows: np.ndarray, weight: Weight) -> np.ndarray:
    """Rounding of fp32 sums; for integer weights that of the rows to int8 too: half a step of each 32 columns."""
    magnitude = np.abs(rows) @ np.abs(weight.values).T
    if weight.format not in ("int4", "int8"):
        return 2e-6 * magnitude
    padded = np.zeros((*rows.shape[:-1], -(-rows.shape[-1] // 32) * 32))
    padded[..., : rows.shape[-1]] = rows
    blocks = padded.reshape(*rows.shape[:-1], -1, 32)
    steps = np.repeat(np.abs(blocks).max(-1, keepdims=True) / 127 * 0.5001, 32, -1).reshape(padded.shape)
    return steps[..., : rows.shape[-1]] @ np.abs(weight.values).T + 4e-6 * magnitude


def run(kernels: Any, case: Case, constant: bool = False) -> list[np.ndarray]:
    """The node's outputs; with `constant` all inputs but x and the residual are initializers."""
    fixed = range(16) if constant else ()
    outputs = [TensorProto.FLOAT] * case.outputs
    return kernels.run("FusedLinear", case.inputs, outputs, constant=set(fixed) - {0, 3}, **case.attributes)


def check(kernels: Any, case: Case, constant: bool = False) -> None:
    for y, expected, error in zip(run(kernels, case, constant), *case.expected(), strict=True):
        assert y.shape == expected.shape and y.dtype == np.float32
        assert (np.abs(y - expected) <= error).all(), np.abs((y - expected) / error).max()


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_queries_keys_and_values(kernels, rows, format, norm):
    weights = [weight(format, N, 75, seed=N, bias=N != 16) for N in (48, 16, 33)]
    check(kernels, Case(draw(rows, 75), weights, norm), constant=rows == 3)
