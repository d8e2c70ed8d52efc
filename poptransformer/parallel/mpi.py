# SPDX-License-Identifier: Apache-2.0
"""Ranks that are processes, on one host or on many: mpi4py over MPICH or OpenMPI.

    mpiexec -n 4 python -m mpi4py inference.py --config-name=tp session.distributed=mpi

`python -m mpi4py` ends all ranks when one of them raises. MPI is initialised when `world` is first called.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.parallel.communicator import Groups
from poptransformer.parallel.mpi_board import Board
from poptransformer.parallel.mpi_transport import MPICommunicator
from poptransformer.parallel.mpi_wait import Waiter

logger = logging.getLogger(__name__)


class World:
    """This process among those that mpiexec has started.

    Attributes:
        rank: its number.
        size: how many there are.
        local_size: how many of them are on this host.
        waiter: waits for the others.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._comm = mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        local = self._comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_size = local.size
        self.board = _open_board(local, self.rank)
        atexit.register(self.board.close)
        is_crowded = self.local_size > len(os.sched_getaffinity(0))
        self.waiter = Waiter(mpi, mpi.COMM_WORLD.Dup(), self.board, timeout=300.0, is_crowded=is_crowded)
        self._groups: dict[tuple[int, int], Groups] = {}

    def place(self, replicas: int, stages: int) -> tuple[int, int]:
        """Returns the stage and the replica of this rank.

        Raises:
            ConfigError: mpiexec has started another number of ranks than the plan has.
        """
        if self.size != replicas * stages:
            raise ConfigError(
                f"The plan has {replicas * stages} ranks ({replicas} replicas x {stages} stages), but mpiexec started "
                f"{self.size}. Use `mpiexec -n {replicas * stages} python -m mpi4py inference.py ...`, or another "
                "global_args.num_replicas or model.layer_per_ipu."
            )
        return divmod(self.rank, replicas)

    def groups(self, replicas: int, stages: int) -> Groups:
        """Returns the groups of this rank; every rank must call it."""
        key = replicas, stages
        if key not in self._groups:
            stage, replica = self.place(replicas, stages)
            same_stage = self._comm.Split(color=stage, key=replica)
            same_replica = self._comm.Split(color=replica, key=stage)
            self._groups[key] = Groups(
                replicas=MPICommunicator(self._mpi, same_stage, self.waiter) if replicas > 1 else None,
                stages=MPICommunicator(self._mpi, same_replica, self.waiter) if stages > 1 else None,
            )
        return self._groups[key]

    def agree(self, array: np.ndarray, what: str) -> None:
        """Writes what rank 0 has in `array` into every rank's."""
        request = self._comm.Ibcast([array, self._mpi.BYTE], root=0)
        self.waiter.wait(request.Test, what)

    def exchange(self, value: Any, what: str) -> list[Any]:
        """Returns all ranks' values, anything that JSON can hold."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.size, np.int64)
        own = np.array([len(text)], np.int64)
        self.waiter.wait(self._comm.Iallgather(own, lengths).Test, what)
        texts = np.empty(int(lengths.sum()), np.uint8)
        ends = np.cumsum(lengths)
        request = self._comm.Iallgatherv(text, [texts, (lengths, ends - lengths)])
        self.waiter.wait(request.Test, what)
        return [json.loads(texts[end - length : end].tobytes()) for end, length in zip(ends, lengths, strict=True)]

    def check_alike(self, facts: Mapping[str, str], what: str) -> None:
        """Raises on all ranks unless they have the same facts.

        Args:
            facts: by name, what must be the same.
            what: what the ranks compare, for errors.

        Raises:
            PopTransformerError: names the first fact that differs, and both values.
        """
        first, *others = self.exchange(dict(facts), f"the comparison of {what}")
        for rank, other in enumerate(others, 1):
            for name in sorted(first.keys() | other.keys()):
                if first.get(name) != other.get(name):
                    raise PopTransformerError(
                        f"The ranks differ in {name}: {first.get(name)} on rank 0, {other.get(name)} on rank {rank}. "
                        "All ranks need the same configuration, checkpoint and versions."
                    )


def _open_board(local: Any, rank: int) -> Board:
    """Makes the board of a host's ranks known to all of them, then lets it be watched."""
    path = local.bcast(Board.create(local.size) if local.rank == 0 else None)
    board = Board(path, local.rank, rank)
    local.Barrier()
    if local.rank == 0:
        Board.watch(path)
    return board


@functools.cache
def world() -> World:
    """Returns this process's place; initialises MPI.

    Raises:
        PopTransformerError: mpi4py or the MPI library is not installed.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise PopTransformerError(
            f"session.distributed=mpi needs mpi4py and an MPI library ({error}). Install them by "
            "`pip install '.[mpi]'` in the project's folder."
        ) from error
    return World(MPI)


def quieten_others() -> None:
    """Lets rank 0 alone write to stdout and log; warnings and errors come from all, with their ranks."""
    rank = world().rank
    if rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        package = logging.getLogger("poptransformer")
        for name in ("poptransformer", "poptransformer.report"):
            logging.getLogger(name).setLevel(max(logging.WARNING, package.getEffectiveLevel()))


def error_prefix() -> str:
    """Returns what the last message of this process begins with: its rank, where it is one of several."""
    if not world.cache_info().currsize:
        return ""
    world().board.close()  # the error is told: nobody needs to guess where this rank was
    return f"rank {world().rank}: " if world().size > 1 else ""
