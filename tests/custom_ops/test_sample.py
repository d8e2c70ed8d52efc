# SPDX-License-Identifier: Apache-2.0
"""Sample: the native kernel against its ONNX function body, and what the body leaves open."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.custom_ops.sample_model import feeds, random_settings, run, session, uniform

ROUNDING = 1e-5  # between sums in fp32 over a vocabulary and exact ones


def nucleus_is_clear(inputs: dict[str, np.ndarray], row: int) -> bool:
    """False where the last token that top-p keeps hangs on the rounding of sums."""
    logits = inputs["logits"][row].astype(np.float64)
    penalty, temperature = float(inputs["repetition_penalty"][row]), float(inputs["temperature"][row])
    seen = np.unique(inputs["history"][row])
    logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    scores = -np.sort(-logits / (temperature if temperature > 0 else 1))
    if 0 < inputs["top_k"][row] < len(scores):
        scores = scores[scores >= scores[inputs["top_k"][row] - 1]]
    weights = np.exp(scores - scores[0])
    tails = np.cumsum(weights[::-1])[::-1] / weights.sum()
    distances = np.abs(tails[1:] - (1 - inputs["top_p"][row]))  # the likeliest token always stays
    return bool((distances > ROUNDING).all())


def compare(inputs: dict[str, np.ndarray]) -> int:
    """Checks the kernel against the body. Returns the number of rows that could be compared."""
    before = inputs["logits"].copy()
    tokens, probabilities = run(True, inputs)
    body_tokens, body_probabilities = run(False, inputs)
    np.testing.assert_array_equal(inputs["logits"], before)
    compared = 0
    for row, token in enumerate(tokens):
        assert probabilities[row, token] > 0
        greedy = inputs["temperature"][row] <= 0 or inputs["top_k"][row] == 1
        if not greedy and inputs["top_p"][row] < 1 and not nucleus_is_clear(inputs, row):
            continue
        compared += 1
        np.testing.assert_allclose(probabilities[row], body_probabilities[row], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(probabilities[row] > 0, body_probabilities[row] > 0)
        bounds = np.cumsum(body_probabilities[row], dtype=np.float64)
        if greedy or np.abs(bounds - uniform(inputs["seed"][row], inputs["step"][row])).min() > ROUNDING:
            assert token == body_tokens[row]
    return compared


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 127, 128, 129, 300, 1000, 5000])
@pytest.mark.parametrize("grid", [None, 0.5], ids=["distinct", "ties"])
def test_equals_the_body_for_every_mix_of_settings(vocabulary: int, grid: float | None) -> None:
    rng = np.random.default_rng(vocabulary)
    compared = 0
    for _ in range(25):
        rows = int(rng.integers(1, 6))
        logits = rng.normal(size=(rows, vocabulary)) * rng.choice([0.5, 2, 5])
        logits = logits if grid is None else np.round(logits / grid) * grid
        history = rng.integers(0, vocabulary, (rows, rng.integers(0, 20)))
        compared += compare(feeds(logits, history, **random_settings(rng, rows)))
    assert compared > 60


@pytest.mark.parametrize("vocabulary", [32_000, 50_257, 151_936])
def test_equals_the_body_on_real_vocabularies(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    settings = random_settings(rng, 12)
    logits = rng.normal(size=(12, vocabulary)) * 5
    assert compare(feeds(logits, rng.integers(0, vocabulary, (12, 300)), **settings)) >= 10


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_nucleus_of_a_flat_distribution_is_the_smallest_that_holds_p(top_p: float) -> None:
    logits = np.round(np.random.default_rng(0).normal(size=(1, 50_257)), 2).astype(np.float32)
    _, probabilities = run(True, feeds(logits, top_p=top_p))
    order = np.lexsort((np.arange(logits.size), -logits[0]))
    kept = int(np.count_nonzero(probabilities))
    assert (probabilities[0, order[:kept]] > 0).all()
    weights = np.exp(logits[0, order].astype(np.float64))
    mass = np.cumsum(weights) / weights.sum()
    assert mass[kept - 2] < top_p + 1e-6 and mass[kept - 1] > top_p - 1e-6


def test_greedy_takes_the_first_of_equal_logits() -> None:
    for vocabulary in (5, 400):
        for first in (0, 2, vocabulary - 2):
            logits = np.zeros((1, vocabulary))
            logits[0, [first, vocabulary - 1]] = 3
            for greedy in ({"top_k": 1}, {"temperature": 0}, {"temperature": -1}):
                tokens, probabilities = run(True, feeds(logits, **greedy))
                assert tokens.tolist() == [first]
                assert probabilities[0].tolist() == np.eye(vocabulary)[first].tolist()


def test_top_k_keeps_ties_and_top_p_drops_the_later_of_them() -> None:
    logits = np.full((1, 300), -5.0)
    logits[0, [7, 150, 151, 299]] = [1, 1, 1, 2]
    _, probabilities = run(True, feeds(logits, top_k=2))
    assert np.flatnonzero(probabilities).tolist() == [7, 150, 151, 299]
    logits = np.zeros((1, 300))
    _, probabilities = run(True, feeds(logits, top_p=0.495))
    assert np.flatnonzero(probabilities).tolist() == list(range(149))
    compare(feeds(logits, top_p=0.495))
    logits[0, ::2] = -0.0
    compare(feeds(logits, top_p=0.495))


def test_repeated_history_counts_once() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 200))
    once = run(True, feeds(logits, [[3, 9, 100]], repetition_penalty=1.7))
    often = run(True, feeds(logits, [[3, 9, 100, 9, 9, 3, 3]], repetition_penalty=1.7))
    np.testing.assert_array_equal(once[1], often[1])


def test_minus_infinity_masks_tokens() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 400))
    logits[:, 10:390] = -np.inf
    assert compare(feeds(logits, rng.integers(0, 400, (40, 5)), **random_settings(rng, 40))) > 35


def test_draw_follows_the_definition_exactly() -> None:
    # Weights of 1 have exact sums, so the token is known for every u.
    seeds = np.random.default_rng(0).integers(0, 2**63, 4000)
    steps = np.arange(4000)
    tokens, _ = run(True, feeds(np.zeros((4000, 64)), seed=seeds, step=steps))
    numbers = np.array([uniform(seed, step) for seed, step in zip(seeds, steps, strict=True)])
    np.testing.assert_array_equal(tokens, np.floor(numbers * 64))
    assert np.bincount(tokens, minlength=64).min() > 30


def test_a_row_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(1)
    rows, vocabulary = 32, 20_011  # large enough for several threads
    history = rng.integers(0, vocabulary, (rows, 9))
    inputs = feeds(rng.normal(size=(rows, vocabulary)) * 3, history, **random_settings(rng, rows))
    tokens, probabilities = run(True, inputs)
    order = rng.permutation(rows)
    shuffled = run(True, {name: x[order] for name, x in inputs.items()})
    np.testing.assert_array_equal(shuffled[0], tokens[order])
    np.testing.assert_array_equal(shuffled[1], probabilities[order])
    for row in range(rows):
        alone = run(True, {name: x[row : row + 1] for name, x in inputs.items()})
        assert alone[0][0] == tokens[row]
        np.testing.assert_array_equal(alone[1][0], probabilities[row])


def test_token_is_the_same_without_the_probabilities() -> None:
    rng = np.random.default_rng(2)
    inputs = feeds(rng.normal(size=(30, 500)) * 3, rng.integers(0, 500, (30, 4)), **random_settings(rng, 30))
    (tokens,) = session(True, probabilities=False).run(None, inputs)
    np.testing.assert_array_equal(tokens, run(True, inputs)[0])


def test_empty_batch() -> None:
    tokens, probabilities = run(True, feeds(np.zeros((0, 5))))
    assert tokens.shape == (0,) and probabilities.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 0))}, "'logits' must be .* 1 <= V"),
        ({"logits": np.zeros((2, 3, 4))}, None),
        ({"logits": [[0, 1, 2], [0, np.nan, 0]]}, "'logits' must hold no NaN.* found nan in row 1"),
        ({"logits": [[0, np.inf, 2], [0, 0, 0]]}, "'logits' must hold .* found inf in row 0"),
        ({"logits": [[0, 1, 2], [-np.inf] * 3]}, "'logits' must hold .* found -inf in row 1"),
        ({"temperature": [1, 1e-45]}, "'logits' must hold .* found inf in row 1 .temperature 1"),
        ({"history": [[0, 0], [2, 3]]}, "'history' must be tokens from 0 to 2, found 3 in row 1"),
        ({"history": [[-1, 0], [2, 2]]}, "'history' must be tokens from 0 to 2, found -1 in row 0"),
        ({"history": [[0]]}, r"'history' must be \[2, T\], found \[1, 1\]"),
        ({"top_k": [1]}, r"'top_k' must be \[2\], found \[1\]"),
        ({"temperature": [1, np.nan]}, "'temperature' must be finite.* found nan in row 1"),
        ({"top_p": [np.nan, 1]}, "'top_p' must be a number.* found nan in row 0"),
        ({"min_p": [0, 1.5]}, "'min_p' must be 1 or less .0 is off., found 1.5 in row 1"),
        ({"min_p": [0, np.nan]}, "'min_p' must be 1 or less"),
        ({"repetition_penalty": [0, 1]}, "'repetition_penalty' must be finite and above 0"),
        ({"repetition_penalty": [1, np.inf]}, "'repetition_penalty' must be finite and above 0"),
        ({"seed": [-1, 0]}, "'seed' must be 0 or more, found -1 in row 0"),
        ({"step": [0, -5]}, "'step' must be 0 or more, found -5 in row 1"),
    ],
)
def test_mistakes_are_errors_that_say_what_was_expected(change: dict, message: str | None) -> None:
    inputs = feeds([[0, 1, 2], [2, 1, 0]], [[0, 1], [1, 2]])
    inputs.update({name: np.asarray(value, inputs[name].dtype) for name, value in change.items()})
    with pytest.raises(Exception, match=message and f"poptransformer.Sample: input {message}"):
        run(True, inputs)
    assert run(True, feeds([[0, 1, 2]], top_k=1))[0].tolist() == [2]  # The session is still usable.


@pytest.mark.skipif(os.environ.get("POPTRANSFORMER_SIMD") == "portable", reason="this is that subprocess")
def test_portable_kernel_passes_all_of_this_too() -> None:
    session(True)
    environment = {**os.environ, "POPTRANSFORMER_SIMD": "portable"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
