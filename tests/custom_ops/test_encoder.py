# SPDX-License-Identifier: Apache-2.0
"""The native encoder gives the same bits as the one in NumPy, on each instruction set and number of threads."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from poptransformer import native
from poptransformer.quantization import PER_TENSOR, PackedWeight, WeightSpec, encode, native_encoder

SPECS = [
    *(WeightSpec("int4", block, symmetric) for block in (32, 64, 128, 0) for symmetric in (True, False)),
    *(WeightSpec("int8", block) for block in (32, 0)),
    *(WeightSpec(name, block) for name in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz") for block in (32, 0, PER_TENSOR)),
    *(WeightSpec(name, block, power_of_two=True) for name in ("e4m3fnuz", "e5m2fnuz") for block in (0, PER_TENSOR)),
    WeightSpec("int4", scale_method="minmax"),
    WeightSpec("int4", symmetric=False, scale_method="minmax"),
    WeightSpec("e4m3fn", scale_method="minmax"),
]
SHAPES = [(1, 1), (16, 31), (37, 100), (70, 576)]


def special() -> np.ndarray:
    """Rows that are zero, constant, tiny, huge, subnormal, of one sign, with one outlier."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((34, 128)).astype(np.float32)
    factors = np.array([0, 1e-30, 1e-40, 1e-8, 1e5, 1e30, 6e-8, 3e38 / 5], np.float32)
    weight[: len(factors)] *= factors[:, None]
    weight[9], weight[10], weight[11, 5] = -0.25, np.abs(weight[10]), 1e4
    weight[12] = np.round(weight[12])  # many ties
    weight[13, ::2] = -0.0
    return weight


def weights() -> list[tuple[np.ndarray, np.ndarray | None]]:
    random = np.random.default_rng(0)
    normal = [(random.standard_t(4, shape) * 0.02).astype(np.float32) for shape in SHAPES]
    plain: list[tuple[np.ndarray, np.ndarray | None]] = [(weight, None) for weight in [*normal, special()]]
    return [*plain, *((weight, random.random(weight.shape[1]).astype(np.float32) ** 2) for weight in normal[2:])]


@pytest.fixture(scope="module")
def expected() -> dict[WeightSpec, list[PackedWeight]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_encoder, "available", lambda: False)
        return {spec: [encode(*arguments(item, spec)) for item in weights()] for spec in SPECS}


def arguments(item: tuple[np.ndarray, np.ndarray | None], spec: WeightSpec) -> tuple:
    return item[0], spec, item[1]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equals_numpy(kernels, monkeypatch: pytest.MonkeyPatch, expected, spec: WeightSpec) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(kernels.path))
    assert native_encoder.available()
    for item, wanted in zip(weights(), expected[spec], strict=True):
        found = encode(*arguments(item, spec))
        np.testing.assert_array_equal(found.codes, wanted.codes)
        np.testing.assert_array_equal(found.scales, wanted.scales)
        if wanted.offsets is not None:
            np.testing.assert_array_equal(found.offsets, wanted.offsets)
        assert found.saturated == wanted.saturated
        assert found.error == pytest.approx(wanted.error, rel=1e-6, abs=1e-12)


class Old:
    """A library from before the encoder, or with other requests."""

    def __init__(self, fields: int | None) -> None:
        if fields is not None:
            self.poptransformer_encode_fields = lambda: fields
            self.poptransformer_encode = None  # must not be called


@pytest.mark.parametrize("fields", [None, 24])
def test_a_library_of_another_age_is_not_called(monkeypatch: pytest.MonkeyPatch, fields: int | None) -> None:
    monkeypatch.setattr(native, "_library", lambda path: Old(fields))
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "/somewhere.so")
    assert not native_encoder.available()
    assert encode(np.eye(32, dtype=np.float32), WeightSpec()).error < 0.1


def test_the_request_has_the_size_that_the_library_expects(kernels) -> None:
    fields = len(native_encoder.Request._fields_)
    assert kernels.library.poptransformer_encode_fields() == fields
    assert ctypes.sizeof(native_encoder.Request) == 8 * (fields - 4) + 4 * 4
