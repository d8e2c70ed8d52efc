# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads of this process: each has a thread, and a pool of its own for the threads of its kernels."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from poptransformer.errors import PopTransformerError
from poptransformer.parallel.communicator import ThreadGroup, use_own_pool

T = TypeVar("T")
_Job = tuple[Callable[[], Any], Future[Any]]


class Workers:
    """One thread for each rank, which does what it is given in turn.

    Args:
        size: ranks.
        groups: all groups that the ranks belong to; a rank that fails ends them.
        timeout: seconds that ranks may come after the first one that has finished.
    """

    def __init__(self, size: int, groups: Sequence[ThreadGroup], timeout: float) -> None:
        self._groups = groups
        self._timeout = timeout
        self._failure: str | None = None
        self._queues: list[queue.SimpleQueue[_Job | None]] = [queue.SimpleQueue() for _ in range(size)]
        for rank, jobs in enumerate(self._queues):
            # Daemons: a rank that hangs must not keep the process from ending.
            threading.Thread(target=_work, args=(jobs,), name=f"rank {rank}", daemon=True).start()
        weakref.finalize(self, _stop, self._queues)

    @property
    def size(self) -> int:
        """Ranks."""
        return len(self._queues)

    def all(self, job: Callable[[int], T]) -> list[T]:
        """Runs `job(rank)` on all ranks at once; returns their results.

        Raises:
            PopTransformerError: a rank failed or did not come back in time; names it.
        """
        if self._failure is not None:
            raise PopTransformerError(f"{self._failure} The model cannot go on after that: load it again.")
        futures = [self._submit(rank, job) for rank in range(self.size)]
        failed = self._first_failed(futures)
        if failed is not None:
            self._end(failed, futures)
        return [future.result() for future in futures]

    def one(self, rank: int, job: Callable[[], T]) -> T:
        """Runs a job that talks to no other rank."""
        return self._submit(rank, lambda _: job()).result()

    def _submit(self, rank: int, job: Callable[[int], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queues[rank].put((lambda: job(rank), future))
        return future

    def _first_failed(self, futures: Sequence[Future[Any]]) -> int | None:
        """Waits for all; returns the rank that failed first, or that is missing long after another one is done."""
        pending = set(futures)
        done: set[Future[Any]] = set()
        deadline = None
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, pending = wait(pending, timeout=left, return_when=FIRST_COMPLETED)
            for future in done:
                if future.exception() is not None:
                    return futures.index(future)
            if pending and not done:
                return futures.index(next(iter(pending)))
            deadline = deadline or time.monotonic() + self._timeout
        return None

    def _end(self, rank: int, futures: Sequence[Future[Any]]) -> None:
        """Ends all groups, and raises the error of the rank that failed."""
        future = futures[rank]
        error = future.exception() if future.done() else None
        if error is None:
            text = f"rank {rank} did not come back within {self._timeout:g} s after another rank was done."
        else:
            text = f"rank {rank} failed: {_text(error)}"
        self._failure = text
        for group in self._groups:
            group.abort(text)
        wait(futures, timeout=self._timeout)
        raise PopTransformerError(text) from error


def _text(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    use_own_pool()
    while (item := jobs.get()) is not None:
        job, future = item
        try:
            future.set_result(job())
        except BaseException as error:  # whatever it is, the caller gets it
            future.set_exception(error)
        del item, job, future  # what they hold is not kept until the next job


def _stop(queues: Sequence[queue.SimpleQueue[_Job | None]]) -> None:
    for jobs in queues:
        jobs.put(None)
