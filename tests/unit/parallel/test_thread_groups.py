# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads: exact sums, and errors in place of waiting for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from poptransformer.errors import PopTransformerError
from poptransformer.parallel.communicator import ThreadGroup
from poptransformer.runtime.workers import Workers

pytestmark = pytest.mark.unit


def on_all(size: int, job: Any, timeout: float = 30.0) -> list[Any]:
    group = ThreadGroup(size, timeout)
    ends = [group.join(rank) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: job(ends[rank]), range(size)))


@pytest.mark.parametrize("count", [1, 7, 1000, 100_003])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_sums_have_the_order_of_the_ranks(size: int, count: int) -> None:
    parts = [np.random.default_rng(rank).standard_normal(count, np.float32) for rank in range(size)]
    expected = parts[0].copy()
    for part in parts[1:]:
        expected += part
    for total in on_all(size, lambda end: end.all_reduce(parts[end.rank], "a sum")):
        assert total.tobytes() == expected.tobytes()


def test_many_rounds() -> None:
    def job(end: Any) -> int:
        good = 0
        for number in range(300):
            total = end.all_reduce(np.full(17, number + end.rank, np.float32), "a sum")
            good += total[0] == 4 * number + 6
        return good

    assert on_all(4, job) == [300] * 4


def test_broadcast() -> None:
    def job(end: Any) -> list[int]:
        array = np.full(5, end.rank, np.int64)
        end.broadcast(array, 2, "tokens")
        return array.tolist()

    assert on_all(3, job) == [[2] * 5] * 3


def test_a_rank_that_does_not_come_is_named() -> None:
    group = ThreadGroup(3, 0.3, first=6)
    start = time.monotonic()
    errors = []

    def job(rank: int) -> None:
        try:
            group.join(rank).all_reduce(np.ones(3, np.float32), "model/layers.3/mlp/down_proj/AllReduce")
        except PopTransformerError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=job, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - start < 5
    assert len(errors) == 2 and errors[0] == errors[1]
    assert "waited 0.3 s in model/layers.3/mlp/down_proj/AllReduce for rank 7, which has not begun" in errors[0]


def test_ranks_that_disagree_are_told() -> None:
    def job(end: Any) -> str:
        try:
            end.all_reduce(np.ones(3 + end.rank, np.float32), "a sum")
        except PopTransformerError as error:
            return str(error)
        return "no error"

    for text in on_all(2, job, timeout=1.0):
        assert "the ranks do not run the same graph on the same inputs" in text


def workers(size: int, timeout: float) -> tuple[Workers, list[Any]]:
    group = ThreadGroup(size, timeout)
    return Workers(size, [group], timeout), [group.join(rank) for rank in range(size)]


def test_a_rank_that_raises_ends_all() -> None:
    crew, ends = workers(3, 20.0)

    def job(rank: int) -> None:
        if rank == 1:
            raise RuntimeError("kernel of h.0/attn/c_proj: no")
        ends[rank].all_reduce(np.ones(3, np.float32), "h.0/attn/c_proj/AllReduce")

    start = time.monotonic()
    with pytest.raises(PopTransformerError, match="rank 1 failed: kernel of h.0/attn/c_proj: no"):
        crew.all(job)
    assert time.monotonic() - start < 5, "the others did not wait for the timeout"
    with pytest.raises(PopTransformerError, match="The model cannot go on after that"):
        crew.all(lambda rank: None)


def test_a_rank_that_hangs_ends_all() -> None:
    crew, ends = workers(2, 0.4)
    forever = threading.Event()

    def job(rank: int) -> None:
        if rank == 1:
            forever.wait(20)
        ends[rank].all_reduce(np.ones(3, np.float32), "h.2/mlp/c_proj/AllReduce")

    start = time.monotonic()
    with pytest.raises(PopTransformerError, match=r"rank 0 waited 0.4 s in h.2/mlp/c_proj/AllReduce for rank 1"):
        crew.all(job)
    assert time.monotonic() - start < 5
    forever.set()


def test_a_rank_that_hangs_after_the_last_collective() -> None:
    crew, _ = workers(2, 0.4)
    forever = threading.Event()
    with pytest.raises(PopTransformerError, match=r"rank 1 did not come back within 0.4 s"):
        crew.all(lambda rank: forever.wait(20) if rank == 1 else None)
    forever.set()
