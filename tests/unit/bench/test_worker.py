# SPDX-License-Identifier: Apache-2.0
"""What a worker measures, with an engine that only counts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bench.catalog import ENGINES, SETS
from bench.engines import worker
from bench.engines.job import WARM_UP_TOKENS, Job

STEP = 0.001


class Clockwork:
    """An engine whose first token takes 10 steps and every other one step."""

    def __init__(self, lost: int = 0) -> None:
        self.calls: list[tuple[Any, int, Any]] = []
        self.lost = lost

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        self.calls.append((ids, count, texts))
        begin = time.perf_counter()
        time.sleep(10 * STEP)
        return [begin + (10 + i) * STEP for i in range(count - self.lost)], list(range(count))


def job(kind: str, **rest: Any) -> Job:
    settings = {"engine": "fake", "path": "", "variant": "", "threads": 1, "batch": 2, "count": 11}
    return Job(**{**settings, "kind": kind, "ids": [[1, 2], [3, 4], [5, 6], [7, 8]], "texts": list("abcd"), **rest})


def test_decode() -> None:
    engine = Clockwork()
    found = worker.decode(engine, job("decode"))
    assert found["values"] == pytest.approx([2 / STEP])  # two rows
    assert found["tokens"] == list(range(WARM_UP_TOKENS))
    assert engine.calls == [([[1, 2], [3, 4]], WARM_UP_TOKENS, None), ([[5, 6], [7, 8]], 11, ["c", "d"])]


def test_no_prompt_comes_twice() -> None:
    engine = Clockwork()
    worker.prefill(engine, job("prefill", batch=1, ids=[[1], [2], [3]], texts=None))
    assert engine.calls == [([[1]], 1, None), ([[2]], 1, None), ([[3]], 1, None)]


def test_prefill() -> None:
    found = worker.prefill(Clockwork(), job("prefill"))
    assert found["values"] == pytest.approx([4 / (10 * STEP)], rel=0.1)  # two rows of two tokens
    assert len(found["waits"]) == 1


def test_first_token() -> None:
    found = worker.first_token(Clockwork(), job("first_token", started=time.monotonic() - 1))
    assert 1.01 < found["values"][0] < 1.5


def test_missing_tokens() -> None:
    with pytest.raises(SystemExit, match="10 tokens in place of 11"):
        worker.decode(Clockwork(lost=1), job("decode"))


@pytest.mark.parametrize("name", ENGINES)
def test_adapters_import_without_their_engine(name: str) -> None:
    import importlib

    assert callable(importlib.import_module(f"bench.engines.{ENGINES[name].module}").load)


def test_sets_fit_the_models() -> None:
    assert SETS["context"].fitted("gpt2-124m", 1024).count == 24
    assert SETS["decode"].fitted("llama-1.1b", 2048).count == 48
    assert SETS["decode"].fitted("smollm2-135m", 8192) == SETS["decode"]
    assert all(found.fitted("gpt2-124m", 1024).count >= 1 for found in SETS.values())
