# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear with fp8 weights: every code exactly, against numpy in float64, threads, rows of their own."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

FORMATS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
TILE = 16
# N, K: one value, ends of tiles (16) and chunks (32), more than one panel (32 x 256), odd everywhere.
SHAPES = [(16, 32), (1, 1), (37, 75), (192, 576), (50, 300), (5, 2050)]
# 1 to 12 are dots, by one to eight inputs; the rest are panels, whole and cut, and more than one block of rows (256).
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 40, 300]
BLOCKS = [32, 64, 128, None]
# Summing K products in fp32, relative to the sum of their magnitudes.
TOLERANCE = 2e-6


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pack(codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, K] and scales [N, blocks] in tiles of 16 rows."""
    N, K = codes.shape
    rows, blocks = round_up(N, TILE), scales.shape[1]
    padded = np.zeros((rows, round_up(round_up(K, 32), 32 * blocks)), np.uint8)
    padded[:N, :K] = codes
    tiles = padded.reshape(-1, TILE, padded.shape[1] // 32, 8, 4).transpose(0, 2, 3, 1, 4)
    padded_scales = np.zeros((rows, blocks), np.float32)
    padded_scales[:N] = scales
    return np.ascontiguousarray(tiles), np.ascontiguousarray(padded_scales.reshape(-1, TILE, blocks).transpose(0, 2, 1))


def draw_weight(format: str, N: int, K: int, block: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of every finite value, and scales that differ a lot."""
    random = np.random.default_rng(seed)
    finite = np.flatnonzero(np.isfinite(np.arange(256, dtype=np.uint8).view(FORMATS[format]).astype(np.float32)))
    blocks = 1 if block is None else -(-K // block)
    scales = np.exp(random.uniform(-6, 2, (N, blocks))).astype(np.float32)
    return random.choice(finite, (N, K)).astype(np.uint8), scales


def values(format: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What a weight stands for, in float64."""
    N, K = codes.shape
    block = round_up(round_up(K, 32), 32 * scales.shape[1]) // scales.shape[1]
    return codes.view(FORMATS[format]).astype(np.float64) * np.repeat(scales.astype(np.float64), block, axis=1)[:, :K]


def run(kernels, x: np.ndarray, format: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    inputs = [x, *pack(codes, scales)]
    (y,) = kernels.run("QuantizedLinear", inputs, format=format, columns=codes.shape[0])
    assert y.shape == (*x.shape[:-1], codes.shape[0])
    assert y.dtype == np.float32
    return y


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 40])
def test_every_code_is_exact(kernels, format, rows):
    # Infinities, NaN and subnormals included; each code in each of the four columns of a group.
    every = np.arange(256, dtype=np.uint8)
    expected = every.view(FORMATS[format]).astype(np.float32)
    for column, K in ((0, 1), (0, 32), (1, 32), (2, 32), (3, 32), (38, 40)):
        codes = np.zeros((256, K), np.uint8)
        codes[:, column] = every
        x = np.zeros((rows, K), np.float32)
        x[:, column] = 1
        y = run(kernels, x, format, codes, np.ones((256, 1), np.float32))
        np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(kernels, shape, format):
    N, K = shape
    # Other blocks for each shape.
    for M, block in zip(ROWS, itertools.islice(itertools.cycle(BLOCKS), N % 4, None), strict=False):
        codes, scales = draw_weight(format, N, K, block, seed=M)
        x = draw(M, K)
        weight, exact = values(format, codes, scales), x.astype(np.float64)
        wrong = np.abs(run(kernels, x, format, codes, scales) - exact @ weight.T)
        assert (wrong <= TOLERANCE * (np.abs(exact) @ np.abs(weight).T)).all(), (M, block)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_do_not_change_a_bit(kernels, format):
    codes, scales = draw_weight(format, 205, 530, 64)
    for rows in (1, 4, 7, 30, 300):
        x = draw(rows, 530)
        results = []
        for threads in (1, 2, 3, 5):
            kernels.threads(threads)
            results.append(run(kernels, x, format, codes, scales))
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


def test_a_row_does_not_depend_on_its_neighbours(kernels):
    codes, scales = draw_weight("e4m3fn", 205, 530, 128)
    x = draw(300, 530)
    few, many = run(kernels, x[:8], "e4m3fn", codes, scales), run(kernels, x, "e4m3fn", codes, scales)
    for rows in (1, 2, 3, 5, 8):
        np.testing.assert_array_equal(run(kernels, x[8 - rows : 8], "e4m3fn", codes, scales), few[8 - rows :])
    np.testing.assert_array_equal(run(kernels, x[100:200], "e4m3fn", codes, scales), many[100:200])


@pytest.mark.parametrize("format", FORMATS)
def test_non_finite_inputs_stay_in_their_row(kernels, format):
    codes, scales = draw_weight(format, 20, 50)
    for rows in (4, 40):
        x = draw(rows, 50)
        x[1, 3], x[2, 49] = np.nan, np.inf
        y = run(kernels, x, format, codes, scales)
        assert np.isnan(y[1]).all()
        last = values(format, codes, scales)[:, 49]
        np.testing.assert_array_equal(y[2], np.where(last == 0, np.nan, np.copysign(np.inf, last)))
        assert np.isfinite(y[[0, 3]]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_nan_weights_stay_in_their_column(kernels, format):
    codes, scales = draw_weight(format, 50, 70, 32)
    codes[[3, 20, 49], [69, 0, 33]] = 0x80 if format.endswith("uz") else 0x7F
    for rows in (1, 2, 4, 5, 40):
        y = run(kernels, draw(rows, 70), format, codes, scales)
        np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(np.isin(np.arange(50), [3, 20, 49]), y.shape))


def test_subnormal_weights_of_small_inputs_are_not_lost(kernels):
    # The least E4M3 value times an input near fp32's least normal one.
    codes, scales = np.full((16, 32), 1, np.uint8), np.full((16, 1), 2.0**9, np.float32)
    for rows in (1, 2, 40):
        x = np.zeros((rows, 32), np.float32)
        x[:, 5] = 2.0**-100
        np.testing.assert_array_equal(run(kernels, x, "e4m3fn", codes, scales), np.float32(2.0**-100))
