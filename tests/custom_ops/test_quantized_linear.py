# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear with integer weights: against an exact emulation, against the product without rounding, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.custom_ops.packed_weight import PackedWeight, draw_weight, rounded, rounding_bound

# Of the sum of the magnitudes that are added: fp32 adds a product or two for each 32 columns.
TOLERANCE = 1e-5
# N, K: whole tiles and chunks, one row, ends of tiles and chunks, many tiles, several steps of everything.
SHAPES = [(16, 32), (1, 1), (37, 75), (192, 576), (130, 300), (5, 2050)]
ROWS = [1, 2, 3, 8, 33, 200]
KINDS = [("int4", False), ("int4", True), ("int8", False)]
BLOCKS = [32, 64, 128, None]


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    """Rows that differ in size, with a few large values, zeros and a block of zeros."""
    random = np.random.default_rng(seed + sum(shape))
    x = random.standard_normal(shape, np.float32) * np.exp(random.uniform(-3, 3, (*shape[:-1], 1))).astype(np.float32)
    x *= np.where(random.random(shape) < 0.01, np.float32(20), np.float32(1))
    x[random.random(shape) < 0.05] = 0
    if shape[-1] >= 96:
        x[..., 32:64] = 0
    return x


def inputs_of(x: np.ndarray, weight: PackedWeight, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
    inputs = {"x": x, **weight.packed()}
    return inputs if bias is None else {**inputs, "bias": bias}


def run(kernels, inputs: dict[str, np.ndarray], constant: bool = False, **attributes) -> np.ndarray:
    """One node; left-out inputs have no name. The weight is constant or fed."""
    names = [name if name in inputs else "" for name in ("x", "codes", "scales", "offsets", "bias")]
    node = helper.make_node("QuantizedLinear", names, ["y"], domain="poptransformer", **attributes)
    fed = {name: array for name, array in inputs.items() if not constant or name == "x"}
    weights = {name: array for name, array in inputs.items() if name not in fed}
    session = kernels.session(node, fed, {"y": TensorProto.FLOAT}, **weights)
    return session.run(None, fed)[0]


def multiply(kernels, x: np.ndarray, weight: PackedWeight, bias: np.ndarray | None = None, **options) -> np.ndarray:
    options = {"format": weight.format, "columns": weight.columns, **options}
    return run(kernels, inputs_of(x, weight, bias), **options)


def assert_emulated(y: np.ndarray, x: np.ndarray, weight: PackedWeight, bias: np.ndarray | float = 0.0) -> None:
    """Within fp32's rounding of the product with the rounded x, and within the derived bound of that with x itself."""
    values, near = weight.values(), rounded(x)
    expected = near @ values.T + bias
    # With offsets two products are added, of codes and of offsets, which may be larger than their sum.
    magnitudes = (
        np.abs(values)
        if weight.offsets is None
        else (weight.codes * weight.spread(weight.scales) + np.abs(weight.spread(weight.offsets)))
    )
    fp32 = TOLERANCE * (np.abs(near) @ magnitudes.T + np.abs(bias)) + 1e-30
    assert y.dtype == np.float32 and y.shape == expected.shape
    assert (np.abs(y - expected) <= fp32).all()
    assert (np.abs(y - (x.astype(np.float64) @ values.T + bias)) <= rounding_bound(x, weight) + fp32).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0] + ("_offsets" if kind[1] else ""))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_emulation(kernels, shape, kind):
    format, offsets = kind
    N, K = shape
    bias = draw(N)
    for block, M in itertools.product(BLOCKS, ROWS):
        weight = draw_weight(format, N, K, block, offsets, seed=M)
        x = draw(M, K)
        assert_emulated(multiply(kernels, x, weight), x, weight)
        assert_emulated(multiply(kernels, x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0] + ("_offsets" if kind[1] else ""))
def test_a_row_does_not_depend_on_the_others(kernels, kind):
    """To the last bit, whatever the number of rows that a step of the kernel takes."""
    format, offsets = kind
    for block in (32, 128):
        weight = draw_weight(format, 130, 300, block, offsets)
        x = draw(23, 300)
        alone = np.concatenate([multiply(kernels, x[i : i + 1], weight) for i in range(len(x))])
        for rows in (2, 5, 6, 7, 23):
            np.testing.assert_array_equal(multiply(kernels, x[:rows], weight), alone[:rows])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0] + ("_offsets" if kind[1] else ""))
def test_rows_that_are_not_finite_and_blocks_that_count_as_zero(kernels, kind):
    """In long rows, whose blocks may be rounded many at a time, at their beginning, inside and at their end."""
    format, offsets = kind
    K = 34 * 32 + 7
    weight = draw_weight(format, 20, K, 32, offsets)
    x = draw(9, K)
    for row, (column, value) in enumerate([(0, np.nan), (517, np.inf), (K - 1, -np.inf), (1050, np.nan)]):
        x[row, column] = value
    x[5, 64:96], x[6, 512:], x[7] = 1e-33, -1e-35, 0
    y = multiply(kernels, x, weight)
    assert np.isnan(y[:4]).all()
    assert_emulated(y[4:], x[4:], weight)
    assert (y[7] == 0).all()
