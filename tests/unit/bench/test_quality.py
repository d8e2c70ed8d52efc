# SPDX-License-Identifier: Apache-2.0
"""Perplexity, divergence and agreement."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.english import english
from bench.our_precisions import CALIBRATION_CHARACTERS
from bench.quality.__main__ import format_rows, verdict
from bench.quality.metrics import ROWS, Quality, compare, join, summarize

TOKENS, VOCABULARY = 2 * ROWS + 5, 11


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (TOKENS, VOCABULARY)).astype(np.float32)


@pytest.fixture
def targets() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, TOKENS)


def test_the_same_logits(logits: np.ndarray, targets: np.ndarray) -> None:
    found = summarize(compare(logits, logits, targets))
    assert (found.tokens, found.change, found.uncertainty, found.divergence, found.agreement) == (TOKENS, 0, 0, 0, 1)


def test_a_constant_changes_nothing(logits: np.ndarray, targets: np.ndarray) -> None:
    found = summarize(compare(logits + 1000, logits, targets))
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert found.change == pytest.approx(0, abs=1e-4)


def test_against_torch(logits: np.ndarray, targets: np.ndarray) -> None:
    import torch
    import torch.nn.functional as F  # noqa: N812

    other = logits + np.random.default_rng(2).normal(0, 0.3, logits.shape).astype(np.float32)
    found = summarize(compare(other, logits, targets))
    mine, reference = (F.log_softmax(torch.tensor(x, dtype=torch.float64), -1) for x in (other, logits))
    losses, expected = (F.nll_loss(x, torch.tensor(targets), reduction="none") for x in (mine, reference))
    assert found.perplexity == pytest.approx(math.exp(losses.mean()))
    assert found.reference_perplexity == pytest.approx(math.exp(expected.mean()))
    assert found.change == pytest.approx(found.perplexity / found.reference_perplexity - 1)
    assert found.divergence == pytest.approx(
        F.kl_div(mine, reference, log_target=True, reduction="sum").item() / TOKENS
    )
    assert found.agreement == pytest.approx((mine.argmax(-1) == reference.argmax(-1)).double().mean().item())
    assert found.uncertainty == pytest.approx((losses - expected).std(correction=0).item() / TOKENS**0.5)


def test_windows_are_put_together(logits: np.ndarray, targets: np.ndarray) -> None:
    other = logits[::-1]
    parts = [compare(other[part], logits[part], targets[part]) for part in (slice(0, 50), slice(50, None))]
    assert summarize(join(parts)) == summarize(compare(other, logits, targets))


@pytest.mark.parametrize(
    ("precision", "change", "expected"),
    [
        ("fp16", 0.0009, ("0.1%", "ok")),
        ("fp16", -0.0011, ("0.1%", "MISSED")),
        ("int4", 0.031, ("3%", "MISSED")),
        ("int4-gptq", 0.0199, ("2%", "ok")),
        ("fp32", 0.5, ("-", "")),
    ],
)
def test_bars(precision: str, change: float, expected: tuple[str, str]) -> None:
    found = Quality(1, 1.0, 1.0, change, 0.0, 0.0, 1.0)
    assert verdict(precision, found) == expected


def test_the_table() -> None:
    text = format_rows({"int8": Quality(8192, 14.5, 14.4, 0.00123, 0.0004, 3.2e-4, 0.981)})
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells == ["int8", "14.5000", "+0.123%", "0.040%", "0.5%", "ok", "3.20e-04", "98.10%"]


def test_calibration_and_measured_text_do_not_meet() -> None:
    assert len(english()) - CALIBRATION_CHARACTERS > 100_000  # 8192 tokens are some 35000 characters
