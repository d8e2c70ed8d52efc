# SPDX-License-Identifier: Apache-2.0
"""Linear against numpy in float64: shapes, element types, threads, errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
# M, K, N: the last sizes of dot products (4, 20 or 48 rows) and the first of panels, odd everywhere, several depths of
# dots (1024) and panels (384), whole and cut panels (16 or 32 columns), several row blocks (256), and nothing at all.
SHAPES = [
    (1, 576, 192),
    (1, 1, 1),
    (2, 7, 5),
    (3, 1031, 3),
    (4, 2050, 37),
    (5, 2050, 37),
    (20, 33, 50),
    (21, 1030, 50),
    (24, 33, 50),
    (25, 33, 50),
    (48, 1030, 50),
    (49, 390, 48),
    (49, 800, 61),
    (31, 7, 16),
    (60, 600, 100),
    (241, 259, 17),
    (500, 64, 129),
    (0, 5, 3),
    (2, 5, 0),
    (2, 0, 3),
    (40, 0, 20),
]
# Summing K products of standard normals in fp32.
TOLERANCE = 2e-6


def operands(M, K, N, dtype, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((M, K), np.float32)
    weight = random.standard_normal((N, K), np.float32).astype(dtype)
    return x, weight, random.standard_normal(N, np.float32)


def reference(x, weight, bias=None):
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    return y if bias is None else y + bias


def assert_close(y, expected, K):
    assert y.shape == expected.shape
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE * max(K, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(kernels, shape, dtype):
    x, weight, bias = operands(*shape, dtype)
    (y,) = kernels.run("Linear", [x, weight])
    assert_close(y, reference(x, weight), shape[1])
    (y,) = kernels.run("Linear", [x, weight, bias])
    assert_close(y, reference(x, weight, bias), shape[1])


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 0), (1, 2, 3), (2, 1, 2, 1, 2)], ids=str)
def test_any_leading_dimensions(kernels, leading):
    x = np.random.default_rng(1).standard_normal((*leading, 9), np.float32)
    _, weight, bias = operands(1, 9, 5, np.float32)
    (y,) = kernels.run("Linear", [x, weight, bias])
    assert_close(y, reference(x, weight, bias), 9)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("rows", [1, 2, 32])
def test_every_16_bit_value_is_exact(kernels, dtype, rows):
    # Infinities, NaN and subnormals included. K = 1 is a remainder, K = 8 a whole vector with zeros beside the value.
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    for K in (1, 8):
        weight = np.zeros((2**16, K), dtype)
        weight[:, 0] = every
        x = np.zeros((rows, K), np.float32)
        x[:, 0] = 1
        (y,) = kernels.run("Linear", [x, weight])
        np.testing.assert_array_equal(y, np.broadcast_to(every.astype(np.float32), y.shape))


def test_threads_do_not_change_a_bit(kernels):
    for rows in (1, 4, 30, 300):
        x, weight, bias = operands(rows, 530, 205, np.float16)
        results = []
        for threads in (1, 2, 3, 5):
            kernels.threads(threads)
            results += kernels.run("Linear", [x, weight, bias])
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


def test_a_row_does_not_depend_on_its_neighbours(kernels):
    x, weight, _ = operands(300, 530, 205, np.float32)
    few, many = kernels.run("Linear", [x[:4], weight])[0], kernels.run("Linear", [x, weight])[0]
    for row in range(4):
        np.testing.assert_array_equal(kernels.run("Linear", [x[row : row + 1], weight])[0][0], few[row])
    np.testing.assert_array_equal(kernels.run("Linear", [x[100:200], weight])[0], many[100:200])


def test_non_finite_inputs_stay_in_their_row(kernels):
    for rows in (4, 40):
        x, weight, _ = operands(rows, 50, 20, np.float32)
        x[1, 3], x[2, 49] = np.nan, np.inf
        (y,) = kernels.run("Linear", [x, weight])
        assert np.isnan(y[1]).all()
        np.testing.assert_array_equal(y[2], np.sign(weight[:, 49]) * np.inf)
        assert np.isfinite(y[[0, 3]]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_weight_is_used_where_it_lies(kernels, dtype):
    x, weight, _ = operands(3, 100, 40, dtype)
    node = helper.make_node("Linear", ["x", "weight"], ["y"], domain="poptransformer")
    session = kernels.session(node, {"x": x}, {"y": TensorProto.FLOAT}, weight=weight)
    assert_close(session.run(None, {"x": x})[0], reference(x, weight), 100)
    weight *= 2  # seen by the session: it holds no copy
    assert_close(session.run(None, {"x": x})[0], reference(x, weight), 200)


FLOATS = np.zeros((2, 5), np.float32)
ERRORS = [
    ([FLOATS, np.zeros((4, 6), np.float32)], r"Linear: input 'weight' must be \[N, 5\], found \[4, 6\]"),
    ([FLOATS, np.zeros(5, np.float32)], r"Linear: input 'weight' must be \[N, 5\], found \[5\]"),
    ([FLOATS, np.zeros((4, 5), np.int8)], "input 'weight' must be float32 or float16 or bfloat16, found int8"),
    ([FLOATS, np.zeros((4, 5), np.float64)], "input 'weight' must be float32 or float16 or bfloat16, found float64"),
    ([FLOATS, np.zeros((4, 5), np.float32), np.zeros(3, np.float32)], r"input 'bias' must be \[4\], found \[3\]"),
    ([FLOATS.astype(np.float64), np.zeros((4, 5), np.float32)], "Linear: input 'x' must be float32, found float64"),
    ([np.zeros((), np.float32), np.zeros((4, 5), np.float32)], "input 'x' must be of rank 1 or more, found a scalar"),
    ([np.zeros((1,) * 9, np.float32), np.zeros((4, 1), np.float32)], "'x' must be of rank 8 or less, found 9"),
]


@pytest.mark.parametrize(("inputs", "message"), ERRORS, ids=[m[-30:] for _, m in ERRORS])
def test_errors_name_what_is_wrong(kernels, inputs, message):
    with pytest.raises(RuntimeError, match=message):
        kernels.run("Linear", inputs)
