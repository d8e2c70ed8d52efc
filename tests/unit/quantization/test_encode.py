# SPDX-License-Identifier: Apache-2.0
"""Encoding: how close the values come, what goes in, and what is refused."""

from __future__ import annotations

import dataclasses
import sys

import ml_dtypes
import numpy as np
import pytest

from poptransformer import native
from poptransformer.errors import ConfigError
from poptransformer.quantization import FORMATS, PER_TENSOR, WeightSpec, encode
from poptransformer.quantization.layout import untile_codes, untile_scales

from . import slow

SPECS = [
    *(WeightSpec("int4", block, symmetric) for block in (32, 64, 128, 0) for symmetric in (True, False)),
    *(WeightSpec("int8", block) for block in (32, 0)),
    *(WeightSpec(name, block) for name in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz") for block in (32, 0, PER_TENSOR)),
    *(WeightSpec(name, block, power_of_two=True) for name in ("e4m3fnuz", "e5m2fnuz") for block in (0, PER_TENSOR)),
]
# Relative errors for normal weights: those of the best scales, found by trying hundreds, and a little.
BOUNDS = {("int4", 32, True): 0.082, ("int4", 32, False): 0.071, ("int4", 128, True): 0.098, ("int4", 0, True): 0.11}
BOUNDS |= {("int8", 32, True): 0.0053, ("int8", 0, True): 0.0085}


@pytest.fixture(params=["native", "numpy"], autouse=True)
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    elif native.function("poptransformer_encode") is None:
        pytest.skip("the custom ops are not built: run `make`")
    return request.param


def normal(rows: int = 48, depth: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, depth), np.float32) * np.float32(0.02)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_error_is_what_it_says_and_no_worse_than_minmax(spec: WeightSpec) -> None:
    weight = normal()
    packed = encode(weight, spec)
    np.testing.assert_array_equal(packed.dequantize(), slow.values(packed))
    assert packed.error == pytest.approx(slow.relative_error(packed.dequantize(), weight), rel=1e-4)
    assert packed.error <= encode(weight, dataclasses.replace(spec, scale_method="minmax")).error
    assert slow.padding_codes(packed) == {spec.kind.zero}
    assert (packed.offsets is None) == spec.symmetric and packed.block == max(spec.block, 0)
    assert packed.error <= BOUNDS.get((spec.format, spec.block, spec.symmetric), 0.12)


def test_search_is_no_worse_in_any_block() -> None:
    weight = normal(64, 512)
    for symmetric in (True, False):
        spec = WeightSpec("int4", 32, symmetric)
        costs = []
        for method in ("search", "minmax"):
            found = encode(weight, dataclasses.replace(spec, scale_method=method)).dequantize()
            costs.append(np.square(found - weight).reshape(64, 16, 32).sum(axis=2))
        assert (costs[0] <= costs[1] * (1 + 1e-5)).all() and costs[0].sum() < 0.9 * costs[1].sum()


@pytest.mark.parametrize("spec", [WeightSpec(), WeightSpec(symmetric=False), WeightSpec("int8", 0)], ids=str)
def test_importance_moves_the_error_to_columns_that_matter_less(spec: WeightSpec) -> None:
    weight = normal(64, 512)
    importance = np.exp(2 * np.random.default_rng(1).standard_normal(512)).astype(np.float32)

    def cost(packed_importance: np.ndarray | None) -> float:
        difference = encode(weight, spec, packed_importance).dequantize() - weight
        return float((np.square(difference) * importance).sum())

    assert cost(importance) < (0.97 if spec.format == "int8" else 0.85) * cost(None)
    # Only ratios count, and no information is no reason to fail.
    scaled = encode(weight, spec, importance * np.float32(2.0**40))
    np.testing.assert_array_equal(scaled.codes, encode(weight, spec, importance).codes)
    np.testing.assert_array_equal(encode(weight, spec, np.zeros(512)).codes, encode(weight, spec).codes)


def test_the_code_for_minus_eight_is_used() -> None:
    weight = normal()
    packed = encode(weight, WeightSpec())
    codes = untile_codes(packed.codes, *weight.shape)
    assert (codes == 0).mean() > 0.01 and (codes == 15).any()
    assert (untile_scales(packed.scales, len(weight)) < 0).any()  # where the largest value is positive


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_on_the_grid_stays(symmetric: bool) -> None:
    random = np.random.default_rng(0)
    scale = np.repeat(random.uniform(0.001, 0.1, (16, 4)).astype(np.float16).astype(np.float32), 32, axis=1)
    steps = random.integers(-8, 8, (16, 128)) if symmetric else random.integers(0, 16, (16, 128)) - 3
    steps[:, ::32], steps[:, 1::32] = (-8, 7) if symmetric else (-3, 12)
    weight = (steps * scale).astype(np.float32)
    offset = None if symmetric else np.float32(-3) * scale[:, ::32]
    packed = encode(weight, WeightSpec(symmetric=symmetric))
    assert packed.error < 3e-4  # fp16 rounds the offset
    if offset is not None:
        np.testing.assert_allclose(untile_scales(packed.offsets, 16), offset, rtol=2e-3)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_any_float_type_and_any_strides(dtype: type) -> None:
    weight = normal(40, 96).astype(dtype)
    expected = encode(np.ascontiguousarray(weight, np.float32), WeightSpec())
    for view in (
        weight,
        np.asfortranarray(weight),
        np.repeat(weight, 2, axis=0)[::2],
        np.ascontiguousarray(weight.T).T,
    ):
        packed = encode(view, WeightSpec())
        np.testing.assert_array_equal(packed.codes, expected.codes)
        np.testing.assert_array_equal(packed.scales, expected.scales)


def test_weights_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(100, 96)
    specs = [WeightSpec(symmetric=False), WeightSpec("e5m2", PER_TENSOR), WeightSpec("int8", 0)]
    whole = [encode(weight, spec) for spec in specs]
    module = sys.modules["poptransformer.quantization.encode"]
    monkeypatch.setattr(module, "_CHUNK_VALUES", 40 * 96)
    monkeypatch.setattr(module, "_NUMPY_CHUNK_VALUES", 40 * 96)
    for spec, expected in zip(specs, whole, strict=True):
        packed = encode(weight.astype(np.float64), spec)
        np.testing.assert_array_equal(packed.codes, expected.codes)
        np.testing.assert_array_equal(packed.scales, expected.scales)
        assert packed.error == pytest.approx(expected.error) and packed.saturated == expected.saturated


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_extremes(spec: WeightSpec) -> None:
    weight = np.zeros((20, 64), np.float32)
    weight[1] = 3.0  # constant
    weight[2] = 1e-30  # below what a scale can say
    weight[3, 7] = -5.0  # alone
    weight[4] = 1e30  # beyond what an fp16 scale can say
    packed = encode(weight, spec)
    found = packed.dequantize()
    assert np.isfinite(found).all() and packed.error >= 0  # also where squares overflow
    if spec.block == PER_TENSOR:
        return
    assert not found[0].any()
    tolerance = 0.07 if spec.power_of_two or spec.kind.is_float8 else 1e-3
    np.testing.assert_allclose(found[1], 3.0, rtol=tolerance)
    assert found[3, 7] == pytest.approx(-5.0, rel=tolerance)
    if not spec.kind.is_float8:
        assert packed.saturated >= (64 if spec.symmetric else 0) and (found[4] > 0).all()
    assert not encode(np.zeros((3, 5), np.float32), spec).error


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", [WeightSpec(), WeightSpec("e4m3fn", PER_TENSOR)], ids=str)
def test_nan_and_infinity_are_named(spec: WeightSpec, bad: float) -> None:
    weight = normal()
    weight[37, 123] = bad
    with pytest.raises(
        ConfigError, match=r"model\.x holds -?(nan|inf) in row 37, column 123.*keep this weight in fp32"
    ):
        encode(weight, spec, name="model.x")


def test_what_is_refused() -> None:
    weight = normal()
    for array, message in [
        (np.zeros((2, 3, 4), np.float32), r"Only matrices can be quantized, found the weight of shape \[2, 3, 4\]"),
        (np.zeros((0, 4), np.float32), "Only matrices"),
        (np.zeros((4, 4), np.int32), "Only floats can be quantized, found the weight of dtype int32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            encode(array, WeightSpec())
    for importance, message in [
        (np.ones(299), r"must have shape \[300\], found \[299\]"),
        (np.full(300, np.nan), "must be finite"),
        (-np.ones(300), "not negative"),
    ]:
        with pytest.raises(ConfigError, match=message):
            encode(weight, WeightSpec(), importance)


def test_saturated_values_are_counted() -> None:
    weight = normal(16, 4096)
    packed = encode(weight, WeightSpec(block=0))
    scales = untile_scales(packed.scales, 16).astype(np.float32)
    steps = np.rint(weight / scales)
    assert packed.saturated == ((steps > 7) | (steps < -8)).sum() > 0
    assert encode(weight, WeightSpec(block=0, scale_method="minmax")).saturated == 0
    assert all(encode(weight, WeightSpec(name)).saturated == 0 for name in FORMATS if name.startswith("e"))
