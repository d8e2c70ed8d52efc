# SPDX-License-Identifier: Apache-2.0
"""Logits of a whole prefill: shapes, padding, and wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from poptransformer.engine import Engine
from poptransformer.errors import ConfigError
from tests.unit.runtime import tiny

IDS = [list(prompt) for prompt in tiny.PROMPTS]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny.engine(tokenizer=True)


def reference_logits(row: list[int]) -> np.ndarray:
    with torch.no_grad():
        return tiny.torch_model()(torch.tensor([row])).logits[0].numpy()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_logits_of_a_batch(engine: Engine, dtype: type) -> None:
    ids = np.array([IDS[0], IDS[2][:5]], dtype)
    logits = engine.logits(ids)
    assert (logits.shape, logits.dtype) == ((2, 5, tiny.VOCABULARY), np.float32)
    for row, found in zip(ids.tolist(), logits, strict=True):
        np.testing.assert_allclose(found, reference_logits(row), atol=1e-4, rtol=0)


def test_logits_of_one_row(engine: Engine) -> None:
    for ids in (IDS[0], tuple(IDS[0]), np.array(IDS[0]), [IDS[0]]):
        np.testing.assert_allclose(engine.logits(ids), reference_logits(IDS[0])[None], atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", [0, tiny.VOCABULARY - 1, -100, 10**6])
def test_padding_may_hold_anything(engine: Engine, padding: int) -> None:
    ids = np.full((3, 11), padding)
    for target, row in zip(ids, IDS, strict=True):
        target[: len(row)] = row
    logits = engine.logits(ids, lengths=[len(row) for row in IDS])
    assert logits.shape == (3, 11, tiny.VOCABULARY)
    for row, found in zip(IDS, logits, strict=True):
        np.testing.assert_allclose(found[: len(row)], reference_logits(row), atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [[5], np.array([5]), (5,), np.array([5], np.int32)])
def test_lengths_of_any_kind(engine: Engine, lengths: Any) -> None:
    assert engine.logits([IDS[0]], lengths).shape == (1, 5, tiny.VOCABULARY)


@pytest.mark.parametrize(
    ("ids", "lengths", "problem"),
    [
        ([], None, r"input_ids has shape \[1, 0\]; expected \[B, L\]"),
        ([[], []], None, r"input_ids has shape \[2, 0\]"),
        (np.zeros((1, 2, 3), int), None, r"input_ids has shape \[1, 2, 3\]"),
        ([[1, 2], [3]], None, "rows of different lengths; pad them on the right"),
        ("Hello", None, "input_ids must be integers.*tokenizer.encode"),
        ([1.0, 2.0], None, "input_ids must be integers, found float64"),
        ([[1, 2]], [3], r"lengths must hold 1 numbers from 1 to 2, found \[3\]"),
        ([[1, 2]], [0], r"lengths must hold 1 numbers from 1 to 2, found \[0\]"),
        ([[1, 2]], [1, 2], r"found \[1, 2\]"),
        ([[1, 2]], 2, "lengths must hold 1 numbers"),
        ([[1, 2]], [1.5], "lengths must be integers"),
        ([[1, tiny.VOCABULARY]], None, f"token id {tiny.VOCABULARY}, but the model's ids go from 0 to 259"),
        ([[1, -1]], None, "token id -1"),
        ([[1] * 65], None, "65 tokens, but max_length is 64"),
    ],
)
def test_wrong_arguments_of_logits(engine: Engine, ids: Any, lengths: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        engine.logits(ids, lengths)
