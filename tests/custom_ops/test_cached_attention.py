# SPDX-License-Identifier: Apache-2.0
"""CachedAttention against numpy in float64: shapes, ragged batches, in-place caches, threads, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

FLOAT = TensorProto.FLOAT
TOLERANCE = 2e-6


@dataclasses.dataclass
class Case:
    """Sizes by the legend of this project, and each row's past length."""

    B: int
    L: int
    N: int
    K: int
    H: int
    S: int
    past: list[int]
    scale: float = 0.3

    def __str__(self) -> str:
        return f"B{self.B}L{self.L}N{self.N}K{self.K}H{self.H}S{self.S}"

    @property
    def attributes(self) -> dict:
        return {"num_heads": self.N, "num_kv_heads": self.K, "scale": self.scale}

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        draw = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
        heads = [draw(self.B, self.L, count * self.H) for count in (self.N, self.K, self.K)]
        caches = [draw(self.B, self.K, self.S, self.H) for _ in range(2)]
        return [*heads, *caches, np.array(self.past, np.int64)]


CASES = [
    Case(1, 1, 1, 1, 1, 1, [0]),
    Case(1, 1, 4, 4, 16, 10, [3]),
    Case(3, 1, 9, 3, 64, 300, [0, 127, 299]),  # decode, slots split in runs of 128
    Case(2, 4, 6, 2, 20, 515, [511, 100]),  # the last number of tokens whose slots are split
    Case(2, 5, 6, 2, 20, 515, [510, 100]),
    Case(1, 1, 71, 1, 33, 200, [150]),  # many queries share a key
    Case(2, 1, 13, 13, 7, 140, [139, 0]),
    Case(1, 200, 6, 2, 64, 200, [0]),  # prefill
    Case(2, 130, 4, 1, 80, 260, [0, 130]),  # the second part of one
    Case(1, 17, 50, 1, 24, 70, [50]),
    Case(3, 12, 2, 2, 3, 80, [60, 0, 5]),
    Case(0, 3, 2, 1, 8, 4, []),
    Case(2, 0, 2, 1, 8, 4, [4, 1]),
    Case(1, 2, 2, 1, 0, 4, [1]),
]


def reference(case: Case, query, key, value, past_key, past_value, past_lengths):
    """Output and caches, the softmax in float64."""
    B, L, N, K, H = case.B, case.L, case.N, case.K, case.H
    present_key, present_value = past_key.copy(), past_value.copy()
    output = np.zeros((B, L, N, H))
    for b, past in enumerate(past_lengths):
        present_key[b, :, past : past + L] = key[b].reshape(L, K, H).swapaxes(0, 1)
        present_value[b, :, past : past + L] = value[b].reshape(L, K, H).swapaxes(0, 1)
        for i, n in np.ndindex(L, N):
            seen = slice(0, past + i + 1)
            kv = n // (N // K)
            scores = case.scale * present_key[b, kv, seen].astype(np.float64) @ query[b, i, n * H : (n + 1) * H]
            weights = np.exp(scores - scores.max())
            output[b, i, n] = weights @ present_value[b, kv, seen] / weights.sum()
    return output.reshape(B, L, N * H), present_key, present_value


def run(kernels, case, inputs, bind=None):
    return kernels.run("CachedAttention", inputs, [FLOAT] * 3, bind, **case.attributes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_numpy(kernels, case):
    inputs = case.inputs()
    kept = [array.copy() for array in inputs]
    output, present_key, present_value = run(kernels, case, inputs)
    expected, expected_key, expected_value = reference(case, *inputs)
    np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max(initial=0)))
    np.testing.assert_array_equal(present_key, expected_key)
    np.testing.assert_array_equal(present_value, expected_value)
    for array, copy in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("case", CASES[2:10], ids=str)
@pytest.mark.parametrize("bound", [(3, 4), (3,), (4,)], ids=["both", "key", "value"])
def test_bound_caches_are_updated_in_place(kernels, case, bound):
    inputs = case.inputs()
    expected = reference(case, *inputs)
    results = run(kernels, case, inputs, {number - 2: inputs[number] for number in bound})
    np.testing.assert_allclose(results[0], expected[0], rtol=0, atol=2 * TOLERANCE)
    for number in (3, 4):
        cache = inputs[number] if number in bound else results[number - 2]
        np.testing.assert_array_equal(cache, expected[number - 2])


def test_threads_do_not_change_a_bit(kernels):
    for case in CASES[:10]:
        inputs = case.inputs()
        results = []
        for threads in (1, 2, 3, 6):
            kernels.threads(threads)
            results.append(run(kernels, case, inputs)[0])
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("L", [1, 4, 30])
def test_a_row_does_not_depend_on_its_neighbours(kernels, L):
    case = Case(3, L, 6, 2, 24, 300, [7, 250, 128])
    inputs = case.inputs()
    together = run(kernels, case, inputs)[0]
    for row in range(case.B):
        one = dataclasses.replace(case, B=1, past=[case.past[row]])
        alone = run(kernels, one, [array[row : row + 1] for array in inputs])[0]
        np.testing.assert_array_equal(alone[0], together[row])


def test_steps_continue_a_prefill(kernels):
    whole = Case(2, 140, 4, 2, 32, 150, [0, 0])
    query, key, value, cache_key, cache_value, _ = whole.inputs()
    expected = reference(whole, *whole.inputs())[0]
    done = 0
    for count in (100, 1, 1, 4, 34):
        step = dataclasses.replace(whole, L=count)
        now = slice(done, done + count)
        parts = [np.ascontiguousarray(x[:, now]) for x in (query, key, value)]
        inputs = [*parts, cache_key, cache_value, np.full(2, done, np.int64)]
        output = run(kernels, step, inputs, {1: cache_key, 2: cache_value})[0]
        np.testing.assert_allclose(output, expected[:, now], rtol=0, atol=TOLERANCE)
        done += count


@pytest.mark.parametrize("L", [1, 4, 30])
def test_slots_behind_the_last_token_are_not_read(kernels, L):
    case = Case(2, L, 4, 2, 20, 200, [5, 130])
    inputs = case.inputs()
    clean = run(kernels, case, inputs)[0]
    for row, past in enumerate(case.past):
        for cache in inputs[3:5]:
            cache[row, :, past:] = np.nan
    np.testing.assert_array_equal(run(kernels, case, inputs)[0], clean)


@pytest.mark.parametrize("L", [2, 4, 30])
def test_a_token_does_not_see_later_ones(kernels, L):
    case = Case(1, L, 4, 2, 20, 200, [100])
    inputs = case.inputs()
    before = run(kernels, case, inputs)[0]
    for array in inputs[:3]:
        array[:, -1] += 1
    after = run(kernels, case, inputs)[0]
    np.testing.assert_array_equal(after[:, :-1], before[:, :-1])
    assert (after[:, -1] != before[:, -1]).any()


@pytest.mark.parametrize("L", [1, 30])
@pytest.mark.parametrize("scale", [0.0, 1e4, -3e4])
def test_great_scores_do_not_overflow(kernels, L, scale):
    case = Case(1, L, 2, 1, 16, 300, [200], scale)
    output = run(kernels, case, case.inputs())[0]
    np.testing.assert_allclose(output, reference(case, *case.inputs())[0], rtol=0, atol=1e-2 if scale else TOLERANCE)


@pytest.mark.parametrize("L", [1, 30])
def test_nan_stays_in_its_head(kernels, L):
    case = Case(1, L, 4, 2, 16, 300, [200])
    inputs = case.inputs()
    inputs[0][0, 0, 16] = np.nan  # head 1 of the first token
    inputs[3][0, 1, 7, 3] = np.nan  # kv head 1, heads 2 and 3, of all tokens
    output = run(kernels, case, inputs)[0].reshape(L, 4, 16)
    assert np.isnan(output[0, 1]).all()
    assert np.isnan(output[:, 2:]).all()
    assert np.isfinite(output[:, 0]).all() and np.isfinite(output[1:, 1]).all()


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


GOOD = Case(2, 3, 4, 2, 8, 16, [0, 13])
# Number of the input to replace, what by, what the error says.
WRONG_INPUTS = [
    (0, zeros(2, 3, 31), r"input 'query' must be \[2, L, 32\], found \[2, 3, 31\]"),
    (0, zeros(2, 3, 4, 8), r"input 'query' must be \[2, L, 32\], found \[2, 3, 4, 8\]"),
    (1, zeros(2, 4, 16), r"input 'key' must be \[2, 3, 16\], found \[2, 4, 16\]"),
    (2, zeros(2, 3, 32), r"input 'value' must be \[2, 3, 16\], found \[2, 3, 32\]"),
    (3, zeros(2, 4, 16, 8), r"input 'past_key' must be \[B, 2, S, H\], found \[2, 4, 16, 8\]"),
    (3, zeros(2, 2, 16), r"input 'past_key' must be \[B, 2, S, H\], found \[2, 2, 16\]"),
    (4, zeros(2, 2, 15, 8), r"input 'past_value' must be \[2, 2, 16, 8\], found \[2, 2, 15, 8\]"),
    (5, np.zeros(3, np.int64), r"input 'past_lengths' must be \[2\], found \[3\]"),
    (5, np.array([0, -1]), r"CachedAttention: past_lengths\[1\] must be 0 or more, found -1"),
    (5, np.array([0, 14]), r"past_lengths\[1\] = 14 plus 3 new tokens must fit the cache of 16 slots"),
    (5, np.array([2**62, 0]), r"past_lengths\[0\] = 4611686018427387904 plus 3 new tokens must fit"),
]


@pytest.mark.parametrize(("number", "array", "message"), WRONG_INPUTS, ids=[w[2][:40] for w in WRONG_INPUTS])
def test_wrong_inputs_are_errors_and_change_nothing(kernels, number, array, message):
    inputs = GOOD.inputs()
    inputs[number] = array
    kept = [inputs[3].copy(), inputs[4].copy()]
    with pytest.raises(RuntimeError, match=message):
        run(kernels, GOOD, inputs, {1: inputs[3], 2: inputs[4]})
    np.testing.assert_array_equal(inputs[3], kept[0])
    np.testing.assert_array_equal(inputs[4], kept[1])


WRONG_ATTRIBUTES = [
    ({"num_heads": 3}, "attribute 'num_heads' must be a multiple of num_kv_heads = 2, found 3"),
    ({"num_heads": 0}, "attribute 'num_heads' must be a multiple of num_kv_heads = 2, found 0"),
    ({"num_kv_heads": 0}, "attribute 'num_kv_heads' must be 1 or more, found 0"),
    ({"scale": float("nan")}, "attribute 'scale' must be finite, found nan"),
    ({"scale": None}, r"attribute 'scale' \(float\) is required"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ATTRIBUTES, ids=[m[:40] for _, m in WRONG_ATTRIBUTES])
def test_wrong_attributes_are_errors_when_the_session_is_made(kernels, change, message):
    attributes = {name: x for name, x in (GOOD.attributes | change).items() if x is not None}
    with pytest.raises(RuntimeException, match=message):
        kernels.run("CachedAttention", GOOD.inputs(), [FLOAT] * 3, **attributes)
