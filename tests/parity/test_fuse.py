# SPDX-License-Identifier: Apache-2.0
"""The fused graph gives what the plain one gives, for every model variant, with and without the native library."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import poptransformer
from poptransformer.engine import Engine
from poptransformer.runtime import SessionSettings
from tests.parity.conftest import Pair

ATOL = 1e-4


@pytest.fixture(scope="module")
def unfused(pair: Pair) -> Engine:
    """The graph as the layers wrote it."""
    return poptransformer.load(pair.folder, max_length=64, fuse=False)


@pytest.fixture(params=["kernels", "bodies"])
def engines(request: pytest.FixtureRequest, engine: Engine, unfused: Engine) -> tuple[Engine, Engine]:
    """Fused and unfused."""
    if request.param == "kernels":
        return engine, unfused
    settings = SessionSettings(use_native=False)
    fused, plain = (Engine(e.runtime.compiled, e.checkpoint, settings) for e in (engine, unfused))
    return fused, plain


def nodes(engine: Engine, inside: bool) -> list[Any]:
    """The nodes of the layers, or all others."""
    graph = engine.runtime.compiled.model.graph
    return [node for node in graph if bool(re.search(r"/(layers|h|blocks)\.", str(node.name))) is inside]


def test_little_but_fused_ops_is_left(pair: Pair, engine: Engine, unfused: Engine) -> None:
    gone = {"Linear", "Add", "Mul", "Split", "Swish", "Gelu", "Relu", "LayerNormalization", "RMSNormalization"}
    gone -= pair.variant.unfused
    inside, outside = ([node.op_type for node in nodes(engine, place)] for place in (True, False))
    layers = sum(name.endswith("CachedAttention") or name == "WKV" for name in inside)
    assert not gone.intersection(inside)
    assert inside.count("FusedLinear") == pair.variant.fused * layers
    has_final_norm = any("Normalization" in node.op_type for node in nodes(unfused, False))
    assert outside.count("FusedLinear") == has_final_norm
    assert not [node for node in unfused.runtime.compiled.model.graph if node.op_type == "FusedLinear"]


def test_prefill(engines: tuple[Engine, Engine], rows: list[np.ndarray]) -> None:
    fused, plain = (engine.logits(rows[0]) for engine in engines)
    np.testing.assert_allclose(fused, plain, atol=ATOL, rtol=0)


def test_decode_steps_of_a_ragged_batch(engines: tuple[Engine, Engine], rows: list[np.ndarray]) -> None:
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    runners = [engine.runtime.start(len(rows), 64) for engine in engines]
    for runner in runners:
        runner.forward(ids, lengths, lengths[:, None] - 1)
    for step in np.random.default_rng(3).integers(1, 60, (4, len(rows))):
        feeds = step[:, None], np.ones(len(rows), np.int64), np.zeros((len(rows), 1), np.int64)
        fused, plain = (runner.forward(*feeds).numpy() for runner in runners)
        np.testing.assert_allclose(fused, plain, atol=ATOL, rtol=0)


def test_whole_generations_in_one_call(engines: tuple[Engine, Engine], rows: list[np.ndarray]) -> None:
    prompts = [row.tolist() for row in rows]
    fused, plain = (
        engine.runtime.generate(prompts, engine.params(prompts, max_new_tokens=12), engine.stop_token_ids)
        for engine in engines
    )
    assert fused == plain
