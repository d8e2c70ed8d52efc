# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths give what transformers makes of a batch that is padded on the left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from poptransformer.engine import Engine
from tests.parity.conftest import Pair
from tests.parity.variants import VARIANTS, Variant

ATOL = 1e-4
GLM = [variant for variant in VARIANTS if variant.name.startswith(("glm", "chatglm2"))]


@pytest.fixture(scope="session", params=GLM, ids=[variant.name for variant in GLM])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    variant: Variant = request.param
    return Pair.make(variant, tmp_path_factory)


@pytest.fixture
def batch(rows: list[np.ndarray]) -> dict[str, Any]:
    """The rows as transformers' tokenizers pad them for generation."""
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(torch.from_numpy(row), (width - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def test_logits(pair: Pair, engine: Engine, rows: list[np.ndarray], batch: dict[str, Any]) -> None:
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = pair.reference(**batch, position_ids=positions).logits.numpy()
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros(batch["input_ids"].shape, np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    for ours, theirs, length in zip(engine.logits(ids, lengths), expected, lengths, strict=True):
        np.testing.assert_allclose(ours[:length], theirs[-length:], atol=ATOL, rtol=0)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generate(pair: Pair, engine: Engine, rows: list[np.ndarray], batch: dict[str, Any], num_beams: int) -> None:
    width = batch["input_ids"].shape[1]
    output = pair.reference.generate(**batch, do_sample=False, max_new_tokens=12, num_beams=num_beams, pad_token_id=0)
    ours = engine.generate([row.tolist() for row in rows], max_new_tokens=12, num_beams=num_beams)
    for found, row in zip(ours, output[:, width:].tolist(), strict=True):
        assert found + [0] * (len(row) - len(found)) == row
