# SPDX-License-Identifier: Apache-2.0
"""Waiting for other MPI ranks with a deadline, which MPI itself has not; and finding out which rank does not answer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from poptransformer.parallel.mpi_board import Board

_ASK, _ANSWER = 1, 2
_TESTS_AT_ONCE = 50  # before the core is offered to others
_PATIENCE = 0.02  # seconds after which waiting is no longer a matter of microseconds
_BLINK, _NAP = 2e-5, 5e-4
_GRACE = 1.0  # seconds that ranks have to answer
_FORWARDING = 0.2  # seconds that mpiexec has to pass on a message before it ends everything


class Waiter:
    """Waits for requests of one process.

    Args:
        mpi: the module `mpi4py.MPI`.
        comm: a communicator of all ranks, for questions and answers only.
        board: where this rank is, for the others of its host.
        timeout: seconds.
        is_crowded: whether there are more ranks on this host than cores: who waits then sleeps, for it keeps others
            from working.
    """

    def __init__(self, mpi: Any, comm: Any, board: Board, timeout: float, is_crowded: bool = False) -> None:
        self.board = board
        self.timeout = timeout
        self._is_crowded = is_crowded
        self._mpi = mpi
        self._comm = comm
        self._sent: list[Any] = []

    def wait(self, is_done: Callable[[], bool], node: str) -> None:
        """Returns when `is_done()`; ends the whole job, with an error that names the rank, after the timeout.

        Args:
            is_done: a request's `Test`, for example.
            node: where this rank is, the layer and its op.
        """
        for _ in range(_TESTS_AT_ONCE):
            if is_done():
                return
        start = time.monotonic()
        while not is_done():
            waited = time.monotonic() - start
            if waited < _PATIENCE:
                if self._is_crowded:
                    time.sleep(_BLINK)
                else:
                    os.sched_yield()
                continue
            self._answer(node)
            if waited > self.timeout:
                self._give_up(node)
            time.sleep(_NAP)

    def _answer(self, node: str) -> None:
        """Tells those who ask where this rank is."""
        status = self._mpi.Status()
        while self._comm.Iprobe(tag=_ASK, status=status):
            self._comm.recv(source=status.Get_source(), tag=_ASK)
            self._sent.append(self._comm.isend(node, status.Get_source(), _ANSWER))

    def _give_up(self, node: str) -> NoReturn:
        rank, others = self._comm.rank, set(range(self._comm.size)) - {self._comm.rank}
        self._sent += [self._comm.isend(None, other, _ASK) for other in others]
        answers: dict[int, str] = {}
        status = self._mpi.Status()
        deadline = time.monotonic() + _GRACE
        while len(answers) < len(others) and time.monotonic() < deadline:
            self._answer(node)
            while self._comm.Iprobe(tag=_ANSWER, status=status):
                source = status.Get_source()
                answers[source] = self._comm.recv(source=source, tag=_ANSWER)
            time.sleep(_NAP)
        silent = sorted(others - set(answers))
        if silent:
            who = f"{_names(silent)}, which {'does' if len(silent) == 1 else 'do'} not answer"
        else:
            who = "others that wait too: " + ", ".join(f"rank {r} in {where}" for r, where in sorted(answers.items()))
        self.abort(f"rank {rank} waited {self.timeout:g} s in {node} for {who}")

    def abort(self, text: str) -> NoReturn:
        """Ends all ranks with an error message."""
        self.board.close()
        sys.stderr.write(f"error: {text}\n")
        sys.stderr.flush()
        time.sleep(_FORWARDING)
        self._mpi.COMM_WORLD.Abort(1)
        # MPICH returns here before mpiexec has ended the process.
        time.sleep(_GRACE)
        os._exit(1)


def _names(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + " and ".join(map(str, ranks))
