# SPDX-License-Identifier: Apache-2.0
"""The four 8-bit floats: rounding as ml_dtypes has it, saturation as onnxruntime has it, power-of-two scales."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from poptransformer import native
from poptransformer.quantization import (
    FLOAT8_FORMATS,
    FORMATS,
    PER_CHANNEL,
    PER_TENSOR,
    PackedWeight,
    WeightSpec,
    encode,
)
from poptransformer.quantization.layout import untile_codes, untile_scales


@pytest.fixture(params=["native", "numpy"], autouse=True)
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    elif native.function("poptransformer_encode") is None:
        pytest.skip("the custom ops are not built: run `make`")


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, f"float8_{name}"))


def encode_unscaled(values: np.ndarray, name: str) -> PackedWeight:
    """Encodes values with the scale 1: the row begins with the format's largest number."""
    row = np.concatenate(([FORMATS[name].largest], values)).astype(np.float32)[None]
    packed = encode(row, WeightSpec(name, scale_method="minmax"))
    assert packed.scales[0, 0, 0] == 1
    return packed


def interesting(name: str) -> np.ndarray:
    """All values of the format, all midpoints between neighbours, and the fp32 numbers beside both."""
    values = np.arange(256, dtype=np.uint8).view(dtype_of(name)).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    exact = np.concatenate((values, (values[1:] + values[:-1]) / 2))
    beside = [np.nextafter(exact, np.float32(sign * np.inf)) for sign in (-1, 1)]
    found = np.concatenate((exact, *beside, [-0.0, 1e-30, -1e-30])).astype(np.float32)
    return found[np.abs(found) <= values.max()]


@pytest.mark.parametrize("name", FLOAT8_FORMATS)
def test_rounding_equals_ml_dtypes(name: str) -> None:
    values = interesting(name)
    packed = encode_unscaled(values, name)
    codes = untile_codes(packed.codes, 1, len(values) + 1)[0, 1:]
    np.testing.assert_array_equal(codes, values.astype(dtype_of(name)).view(np.uint8))
    assert packed.saturated == 0
    subnormal = np.abs(values) < 2.0 ** FORMATS[name].min_exponent
    assert subnormal.sum() > 10 and len(np.unique(codes[subnormal])) > 5


@pytest.mark.parametrize("name", FLOAT8_FORMATS)
def test_what_is_too_large_becomes_the_largest_and_is_counted(name: str) -> None:
    kind = FORMATS[name]
    largest = np.float32(kind.largest)
    # One scale for the weight, 2^0 or less: the search must be told by minmax.
    spec = WeightSpec(name, PER_CHANNEL, scale_method="minmax", power_of_two=True)
    beyond = np.nextafter(np.float32(kind.overflow), np.float32(np.inf))
    with np.errstate(invalid="ignore"):
        cast = np.array([kind.overflow, beyond], np.float32).astype(dtype_of(name)).astype(np.float32)
    assert cast[0] == largest and not np.isfinite(cast[1]), "overflow is the last number that does not overflow"
    # The scale would go beyond 2^31, which is the most there is.
    packed = encode(np.array([[beyond, kind.overflow, -beyond, 1]], np.float32) * np.float32(2.0**31), spec)
    assert packed.scales[0, 0, 0] == 2.0**31 and packed.saturated == 2
    assert packed.dequantize()[0].tolist() == (np.array([largest, largest, -largest, 1]) * 2.0**31).tolist()


@pytest.mark.parametrize("block", [PER_CHANNEL, PER_TENSOR])
@pytest.mark.parametrize("name", ["e4m3fnuz", "e5m2fnuz"])
def test_power_of_two_scales(name: str, block: int) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((20, 64)).astype(np.float32) * np.exp2(random.uniform(-35, 45, (20, 1)))
    for method in ("search", "minmax"):
        packed = encode(weight.astype(np.float32), WeightSpec(name, block, scale_method=method, power_of_two=True))
        exponents = np.log2(untile_scales(packed.scales, 20)[:, 0])
        assert (exponents == np.round(exponents)).all() and exponents.min() >= -32 and exponents.max() <= 31
        assert len(np.unique(exponents)) == 1 if block == PER_TENSOR else len(np.unique(exponents)) > 10


@pytest.mark.parametrize("name", FLOAT8_FORMATS)
def test_one_scale_for_the_weight(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 100)).astype(np.float32)
    packed = encode(weight, WeightSpec(name, PER_TENSOR))
    assert packed.block == 0 and packed.scales.shape == (3, 1, 16)
    assert len(np.unique(untile_scales(packed.scales, 40))) == 1
    assert packed.saturated == 0
    assert packed.error <= encode(weight, WeightSpec(name, PER_TENSOR, scale_method="minmax")).error
    assert encode(weight, WeightSpec(name, PER_CHANNEL)).error < packed.error


def test_no_code_is_nan() -> None:
    random = np.random.default_rng(0)
    for name in FLOAT8_FORMATS:
        for weight in (random.standard_normal((16, 64)), -np.zeros((16, 64)), -np.full((16, 64), 1e-20)):
            packed = encode(weight.astype(np.float32), WeightSpec(name))
            assert np.isfinite(packed.dequantize()).all()
            assert np.isfinite(packed.codes.view(dtype_of(name)).astype(np.float32)).all()
