# SPDX-License-Identifier: Apache-2.0
"""Every model in a `Session`: compiled anew and from the cache, profiled, in several precisions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import open_checkpoint
from poptransformer.models import model_class_for
from poptransformer.sessions import Session
from tests.parity.conftest import Pair
from tests.parity.variants import VARIANTS

# The first variant of each model.
MODELS = list({variant.name.split("-")[0]: variant for variant in reversed(VARIANTS)}.values())


@pytest.fixture(scope="session", params=MODELS, ids=[variant.name for variant in MODELS])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session")
def pair(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.make(model, tmp_path_factory)


def session_of(pair: Pair, precision: str = "fp32", **options: Any) -> Session:
    """What `prepare_model_session` makes, for a checkpoint without a tokenizer."""
    checkpoint = open_checkpoint(pair.folder)
    with use_build(Build(precision=precision, batch_size=3)):
        model = model_class_for(checkpoint.config).from_checkpoint(checkpoint, max_length=64, max_loop=12)
    session = Session(**options)
    session.compile(model)
    return session


def answers(session: Session, rows: list[np.ndarray]) -> list[list[int]]:
    """New ids of each row; four rows are two batches."""
    outputs = session.run(session.model.pad([row.tolist() for row in rows]))
    pairs = zip(outputs["output_ids"], outputs["output_lengths"], strict=True)
    return [ids[:length].tolist() for ids, length in pairs]


def test_the_cache(pair: Pair, rows: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = [pair.generate(row, max_new_tokens=12) for row in rows]
    found = []
    with caplog.at_level(logging.INFO, "poptransformer"):
        for _ in range(2):
            session = session_of(pair, execution_cache_name=str(tmp_path / "cache"))
            found.append(answers(session, rows))
    (entry,) = (tmp_path / "cache").iterdir()
    assert caplog.messages.count(f"using the compiled model in {entry}") == 1
    assert found[0] == found[1]
    # A session goes on after the end of text, unless `early_stop` is set.
    assert [answer[: len(row)] for answer, row in zip(found[0], expected, strict=True)] == expected
    assert {len(answer) for answer in found[0]} == {12}


def test_the_profile(pair: Pair, rows: list[np.ndarray], tmp_path: Path) -> None:
    session = session_of(pair, profile_name=str(tmp_path / "profile"))
    answers(session, rows)
    table = (tmp_path / "profile" / "layers.txt").read_text().splitlines()
    assert table[0].split() == ["layer", "calls", "ms", "share", "weight", "MB"]
    profiled = [line.split()[0] for line in table[1:]]
    layers = [name for name in profiled if any(f"{group}.0/" in name for group in ("layers", "h", "blocks"))]
    assert len(layers) >= 4
    assert session.performance().decode_step == 12


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "fp8_weight"])
def test_precisions(pair: Pair, precision: str, rows: list[np.ndarray], tmp_path: Path) -> None:
    """Close to PyTorch in fp32, and the same by steps, in one call, fused or not, saved or not."""
    engine = poptransformer.load(pair.folder, precision=precision, max_length=64)
    plain = poptransformer.load(pair.folder, precision=precision, max_length=64, fuse=False)
    saved = poptransformer.load(engine.save(tmp_path / "model"))
    exact, found = pair.logits(rows[0]), engine.logits(rows[0])[0]
    limit = {"fp16": 0.01, "int8": 0.06, "int4": 0.5, "fp8_weight": 0.3}[precision]
    assert 0 < np.abs(found - exact).mean() / exact.std() < limit
    np.testing.assert_allclose(plain.logits(rows[0])[0], found, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(saved.logits(rows[0])[0], found)
    prompts = [row.tolist() for row in rows]
    params = engine.params(prompts, max_new_tokens=8)
    in_one_call = engine.runtime.generate(prompts, params, engine.stop_token_ids)
    assert in_one_call == engine.generate(prompts, max_new_tokens=8)
