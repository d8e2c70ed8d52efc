# SPDX-License-Identifier: Apache-2.0
"""WKV against transformers' own recurrence: shapes, ragged rows, steps, extremes, threads, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

FLOAT = TensorProto.FLOAT
TOLERANCE = 2e-6


def draw(B: int, L: int, D: int, spread: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(B + L + D)
    normal = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
    return {
        "decay": -np.exp(normal(D)),
        "bonus": normal(D),
        "key": spread * normal(B, L, D),
        "value": normal(B, L, D),
        "lengths": np.full(B, L, np.int64),
        "numerator": np.zeros((B, D), np.float32),
        "denominator": np.zeros((B, D), np.float32),
        "maximum": np.full((B, D), -1e38, np.float32),
    }


def run(kernels, inputs: dict[str, np.ndarray], bind=None) -> list[np.ndarray]:
    return kernels.run("WKV", list(inputs.values()), [FLOAT] * 4, bind)


def reference(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    tensor = {name: torch.from_numpy(array) for name, array in inputs.items()}
    state = [tensor[name].clone() for name in ("numerator", "denominator", "maximum")]
    # transformers takes the logarithm of the decay's negative and negates its exponential itself.
    output, state = rwkv_linear_attention_cpu(
        torch.log(-tensor["decay"]), tensor["bonus"], tensor["key"], tensor["value"], state, return_state=True
    )
    return [output.numpy(), *(part.numpy() for part in state)]


@pytest.mark.parametrize(
    ("B", "L", "D"), [(1, 1, 1), (1, 1, 768), (3, 1, 65), (1, 512, 64), (2, 33, 100), (4, 7, 16), (1, 3, 2048)]
)
def test_matches_transformers(kernels, B, L, D):
    inputs = draw(B, L, D)
    for actual, expected in zip(run(kernels, inputs), reference(inputs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_great_keys_do_not_overflow(kernels):
    inputs = draw(2, 50, 40, spread=100.0)
    for actual, expected in zip(run(kernels, inputs), reference(inputs), strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_steps_continue_a_prefill(kernels):
    whole = draw(2, 40, 70)
    expected = run(kernels, whole)
    state, outputs, done = [whole[name] for name in ("numerator", "denominator", "maximum")], [], 0
    for count in (17, 1, 1, 21):
        part = {name: np.ascontiguousarray(whole[name][:, done : done + count]) for name in ("key", "value")}
        step = whole | part | {"lengths": np.full(2, count, np.int64)}
        step |= dict(zip(("numerator", "denominator", "maximum"), state, strict=True))
        output, *state = run(kernels, step)
        outputs.append(output)
        done += count
    np.testing.assert_array_equal(np.concatenate(outputs, 1), expected[0])
    for actual, last in zip(state, expected[1:], strict=True):
        np.testing.assert_array_equal(actual, last)


def test_padding_changes_no_state(kernels):
    inputs = draw(3, 20, 50)
    inputs["lengths"] = np.array([20, 7, 0], np.int64)
    together = run(kernels, inputs)
    for row, length in enumerate(inputs["lengths"]):
        alone = {name: a if name in ("decay", "bonus") else a[row : row + 1] for name, a in inputs.items()}
        alone |= {name: alone[name][:, :length].copy() for name in ("key", "value")}
        output, *state = run(kernels, alone)
        np.testing.assert_array_equal(together[0][row, :length], output[0])
        assert not together[0][row, length:].any()
        for batched, single in zip(together[1:], state, strict=True):
            np.testing.assert_array_equal(batched[row], single[0])


def test_states_are_updated_in_place(kernels):
    inputs = draw(2, 5, 90)
    expected = run(kernels, inputs)
    bound = {1: inputs["numerator"], 2: inputs["denominator"], 3: inputs["maximum"]}
    output = run(kernels, inputs, bound)[0]
    np.testing.assert_array_equal(output, expected[0])
    for number, array in bound.items():
        np.testing.assert_array_equal(array, expected[number])


def test_threads_do_not_change_a_bit(kernels):
    inputs = draw(3, 30, 300)
    results = []
    for threads in (1, 2, 5):
        kernels.threads(threads)
        results.append(run(kernels, inputs))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_nothing_to_do(kernels):
    for B, L, D in ((0, 3, 4), (2, 0, 4), (1, 2, 0)):
        inputs = draw(B, L, D)
        output, *state = run(kernels, inputs)
        assert output.shape == (B, L, D)
        for actual, name in zip(state, ("numerator", "denominator", "maximum"), strict=True):
            if L == 0:
                np.testing.assert_array_equal(actual, inputs[name])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("decay", (9,), r"WKV: input 'decay' must be \[8\], found \[9\]"),
        ("value", (2, 4, 8), r"WKV: input 'value' must be \[2, 3, 8\], found \[2, 4, 8\]"),
        ("maximum", (2, 7), r"WKV: input 'maximum' must be \[2, 8\], found \[2, 7\]"),
        ("key", (2, 8), r"WKV: input 'key' must be \[B, L, D\], found \[2, 8\]"),
    ],
)
def test_wrong_shapes(kernels, name, shape, message):
    inputs = draw(2, 3, 8) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(RuntimeError, match=message):
        run(kernels, inputs)


@pytest.mark.parametrize("length", [-1, 4])
def test_wrong_lengths(kernels, length):
    inputs = draw(1, 3, 8) | {"lengths": np.array([length], np.int64)}
    message = rf"lengths\[0\] must be from 0 to the 3 tokens of the step, found {length}"
    with pytest.raises(RuntimeError, match=message):
        run(kernels, inputs)
