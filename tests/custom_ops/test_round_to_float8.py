# SPDX-License-Identifier: Apache-2.0
"""RoundToFloat8 against ml_dtypes: every value and every tie of each format, range, scales, errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

FORMATS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
ONE = np.array(1, np.float32)


def largest(format):
    return float(ml_dtypes.finfo(FORMATS[format]).max)


def rounded(x, format):
    return np.clip(x, -largest(format), largest(format)).astype(FORMATS[format]).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_every_value_tie_and_neighbour(kernels, format):
    values = np.arange(256, dtype=np.uint8).view(FORMATS[format]).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2
    beyond = np.array([largest(format) * 1.01, -largest(format) * 3, 3e38, 1e-30, 1e-42, 0.0], np.float32)
    x = np.concatenate([values, ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf), beyond])
    x = x.astype(np.float32)
    (y,) = kernels.run("RoundToFloat8", [x, ONE], format=format, scaling="amax")
    np.testing.assert_array_equal(y, rounded(x, format))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scaling", ["amax", "power_of_two"])
def test_each_row_has_its_own_scale(kernels, format, scaling):
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 53), np.float32) * 2.0 ** random.uniform(-60, 60, (60, 1)).astype(np.float32)
    x[4] = 0
    # Exactly a power of two times the largest value, and the next number above that.
    x[5:7] = np.clip(x[5:7], -1, 1)
    x[5, 3], x[6, 3] = 32 * largest(format), np.nextafter(np.float32(32 * largest(format)), np.float32(np.inf))
    scale = np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(largest(format)), np.float32(2.0**-120))
    if scaling == "power_of_two":
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
    (y,) = kernels.run("RoundToFloat8", [x], format=format, scaling=scaling)
    np.testing.assert_array_equal(y, rounded(x / scale, format) * scale)
    assert (np.abs(y).max(-1) >= np.abs(x).max(-1) * (1 - 2.0**-3)).all()  # nothing large was cut off


@pytest.mark.parametrize("format", FORMATS)
def test_non_finite_values_stay_in_their_row(kernels, format):
    x = np.random.default_rng(0).standard_normal((3, 21), np.float32)
    x[1, 3], x[2, 20] = np.nan, np.inf
    (y,) = kernels.run("RoundToFloat8", [x], format=format, scaling="amax")
    assert np.isnan(y[1, 3])
    assert np.isfinite(y[0]).all()
    (y,) = kernels.run("RoundToFloat8", [x, ONE], format=format, scaling="amax")
    assert np.isnan(y[1, 3])
    assert y[2, 20] == largest(format)
    assert np.isfinite(y).sum() == y.size - 1


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (1,), (2, 3, 4, 5)], ids=str)
def test_any_shape(kernels, shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    (y,) = kernels.run("RoundToFloat8", [x, ONE], format="e4m3fn", scaling="amax")
    np.testing.assert_array_equal(y, rounded(x, "e4m3fn"))


X = np.zeros((2, 5), np.float32)
ERRORS = [
    ([X], {"format": "e3m4", "scaling": "amax"}, "attribute 'format' must be e4m3fn, e5m2, .* found e3m4"),
    ([X], {"format": "e5m2", "scaling": "max"}, "attribute 'scaling' must be amax or power_of_two, found max"),
    ([X], {"format": "e5m2"}, r"attribute 'scaling' \(string\) is required"),
    (
        [X, np.ones(2, np.float32)],
        {"format": "e5m2", "scaling": "amax"},
        r"input 'scale' must be one value, found \[2\]",
    ),
    (
        [np.zeros((), np.float32)],
        {"format": "e5m2", "scaling": "amax"},
        "'x' must be of rank 1 or more, found a scalar",
    ),
]


@pytest.mark.parametrize(("inputs", "attributes", "message"), ERRORS, ids=[message[-30:] for _, _, message in ERRORS])
def test_errors_name_what_is_wrong(kernels, inputs, attributes, message):
    with pytest.raises(Exception, match=f"RoundToFloat8: .*{message}"):
        kernels.run("RoundToFloat8", inputs, **attributes)
