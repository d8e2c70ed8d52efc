# SPDX-License-Identifier: Apache-2.0
"""Calibration: statistics of activations, and weights that are rounded to suit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from poptransformer.errors import ConfigError
from poptransformer.quantization import ActivationStats, WeightSpec, collect, encode, encode_calibrated
from poptransformer.quantization.activations import Feedback
from poptransformer.quantization.layout import untile_codes

from . import slow

DEPTH = 160


def correlated(rows: int, depth: int = DEPTH, seed: int = 0) -> np.ndarray:
    """Inputs whose columns go together and differ in size, as activations do: few directions and some noise."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((depth // 5, depth)) * np.exp(
        np.random.default_rng(8).standard_normal(depth)
    )
    return (random.standard_normal((rows, depth // 5)) @ mixing + 0.2 * random.standard_normal((rows, depth))).astype(
        np.float32
    )


def stats_of(x: np.ndarray, hessians: bool = True) -> ActivationStats:
    return collect(
        lambda tokens, names: {"x": x[tokens]}, np.array_split(np.arange(len(x))[None], 3, axis=1), ["x"], hessians
    )["x"]


def product_error(found: np.ndarray, weight: np.ndarray, x: np.ndarray) -> float:
    return slow.relative_error(x @ found.T, x @ weight.T)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((48, DEPTH), np.float32)


def test_statistics_over_windows() -> None:
    values = {name: correlated(40, seed=seed) for seed, name in enumerate("ab")}
    calls = []

    def run(tokens: np.ndarray, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        calls.append(tokens.shape)
        return {name: values[name][tokens] for name in names}

    windows = [np.arange(0, 30).reshape(2, 15), np.arange(30, 40)[None]]
    found = collect(run, windows, ["a", "b"], hessians=True)
    assert calls == [(2, 15), (1, 10)] and list(found) == ["a", "b"]
    for name, stats in found.items():
        x = values[name].astype(np.float64)
        assert stats.rows == 40 and stats.amax == np.abs(values[name]).max()
        np.testing.assert_allclose(stats.mean_square, np.square(x).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(stats.hessian, x.T @ x / 40, rtol=1e-4, atol=1e-4 * stats.amax**2)
    assert collect(run, windows, ["a"])["a"].hessian is None


@pytest.mark.parametrize(
    ("spec", "gain"),
    [
        (WeightSpec(), 2.0),
        (WeightSpec(block=64, symmetric=False), 2.0),
        (WeightSpec(block=0), 2.0),
        (WeightSpec("int8", 0), 2.0),
        (WeightSpec("e4m3fn"), 1.5),
        (WeightSpec("e5m2fnuz", power_of_two=True), 1.5),
    ],
    ids=str,
)
def test_calibrated_beats_plain_on_inputs_it_has_not_seen(weight: np.ndarray, spec: WeightSpec, gain: float) -> None:
    x, unseen = correlated(4000), correlated(1000, seed=1)
    stats = stats_of(x)
    plain, weighed = encode(weight, spec), encode(weight, spec, stats.mean_square)
    calibrated = encode_calibrated(weight, spec, stats)
    errors = [product_error(packed.dequantize(), weight, unseen) for packed in (plain, weighed, calibrated)]
    assert errors[2] * gain < errors[0] and errors[2] < errors[1]
    assert calibrated.error == pytest.approx(slow.relative_error(calibrated.dequantize(), weight), rel=1e-4)
    assert calibrated.nbytes == plain.nbytes


def test_without_a_hessian_inputs_weigh_the_search(weight: np.ndarray) -> None:
    stats = stats_of(correlated(500), hessians=False)
    assert stats.feedback is None
    found = encode_calibrated(weight, WeightSpec(), stats)
    np.testing.assert_array_equal(found.codes, encode(weight, WeightSpec(), stats.mean_square).codes)


def test_independent_inputs_change_nothing(weight: np.ndarray) -> None:
    stats = ActivationStats(100, 1.0, np.ones(DEPTH, np.float32), np.eye(DEPTH, dtype=np.float32))
    found, plain = encode_calibrated(weight, WeightSpec(), stats), encode(weight, WeightSpec())
    np.testing.assert_array_equal(found.codes, plain.codes)
    assert found.saturated == plain.saturated and found.error == pytest.approx(plain.error, rel=1e-4)


def test_codes_are_those_of_column_by_column_rounding(weight: np.ndarray) -> None:
    """Against GPTQ as published: the inverse's Cholesky factor, one column at a time, in float64."""
    stats = stats_of(correlated(2000))
    spec = WeightSpec("int8", 0)
    found = encode_calibrated(weight, spec, stats)
    scales = found.scales.transpose(0, 2, 1).reshape(-1)[: len(weight)].astype(np.float64)
    order = np.argsort(-np.diag(stats.hessian), kind="stable")
    hessian = stats.hessian.astype(np.float64)[np.ix_(order, order)]
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(DEPTH)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left = weight.astype(np.float64)[:, order]
    codes = np.empty(weight.shape, int)
    for j in range(DEPTH):
        q = np.clip(np.rint(left[:, j] / scales), -127, 127)
        codes[:, order[j]] = q + 128
        error = (left[:, j] - q * scales) / factor[j, j]
        left[:, j:] -= np.outer(error, factor[j, j:])
    # A value may lie so near to the middle between two codes that fp32 decides otherwise, and what follows differs.
    same = untile_codes(found.codes, *weight.shape) == codes
    assert same.all(axis=1).mean() > 0.9


def test_columns_that_are_never_used(weight: np.ndarray) -> None:
    x = correlated(500)
    x[:, [3, 40, 41]] = 0
    found = encode_calibrated(weight, WeightSpec(), stats_of(x))
    assert np.isfinite(found.dequantize()).all()
    assert product_error(found.dequantize(), weight, x) < 0.06
    silent = ActivationStats(9, 0.0, np.zeros(DEPTH, np.float32), np.zeros((DEPTH, DEPTH), np.float32))
    np.testing.assert_array_equal(
        encode_calibrated(weight, WeightSpec(), silent).codes, encode(weight, WeightSpec()).codes
    )


def test_fewer_tokens_than_columns(weight: np.ndarray) -> None:
    x = correlated(20)
    found = encode_calibrated(weight, WeightSpec(), stats_of(x))
    assert product_error(found.dequantize(), weight, x) < product_error(
        encode(weight, WeightSpec()).dequantize(), weight, x
    )


def test_factor_and_importance() -> None:
    hessian = stats_of(correlated(1000)).hessian
    feedback = Feedback.of(hessian)
    lower, scale = feedback.factor.astype(np.float64), np.sqrt(feedback.importance.astype(np.float64)[feedback.order])
    assert (np.triu(lower, 1) == 0).all() and (np.diag(lower) == 1).all()
    root = (lower * scale[:, None]).T  # R, upper triangular
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(DEPTH)
    np.testing.assert_allclose(root @ root.T, damped[np.ix_(feedback.order, feedback.order)], rtol=1e-3, atol=1e-3)


def test_what_does_not_fit(weight: np.ndarray) -> None:
    stats = stats_of(correlated(50))
    with pytest.raises(ConfigError, match="w has 100 columns, but calibration saw an input of 160"):
        encode_calibrated(weight[:, :100], WeightSpec(), stats, "w")
    bad = weight.copy()
    bad[2, 3] = np.nan
    with pytest.raises(ConfigError, match="w holds nan in row 2, column 3"):
        encode_calibrated(bad, WeightSpec(), stats, "w")
    hessian = stats.hessian.copy()
    hessian[5, 5] = np.inf
    with pytest.raises(ConfigError, match="activations that are NaN or infinite"):
        encode_calibrated(weight, WeightSpec(), ActivationStats(50, 1.0, stats.mean_square, hessian))
