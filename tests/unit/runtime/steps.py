# SPDX-License-Identifier: Apache-2.0
"""Steps of a `StepRunner` as tests take them."""

from __future__ import annotations

import numpy as np

from poptransformer.runtime import StepRunner
from tests.unit.runtime import tiny


def prefill(runner: StepRunner, rows: list[list[int]]) -> np.ndarray:
    """Logits `[B, V]` after the last token of each row."""
    feeds = tiny.inputs(*rows)
    return runner.forward(feeds["input_ids"], feeds["lengths"], feeds["lengths"][:, None] - 1).numpy()[:, 0]


def decode(runner: StepRunner, tokens: list[int], active: list[int] | None = None) -> np.ndarray:
    """Logits `[B, V]` after one more token per row; rows that are not active stay where they are."""
    ids = np.array(tokens)[:, None]
    lengths = np.ones(len(ids), np.int64) if active is None else np.array(active)
    return runner.forward(ids, lengths, np.zeros_like(ids)).numpy()[:, 0]


def alone(row: list[int]) -> np.ndarray:
    """Logits after the last token of a row that had the model to itself."""
    return tiny.engine().logits(row)[0, -1]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Fails unless two ways of computing the same agree."""
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
