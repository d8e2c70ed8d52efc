# SPDX-License-Identifier: Apache-2.0
"""Where each rank of a host is: a small file that all of them map, so that the death of one can be told in words.

mpiexec ends a job in which a process was killed at once, before any rank can say a word about it. A watcher outlives
the ranks for a moment: it sees the first one end, and reads here where that was.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SLOT = 256  # bytes: the rank's process and where it is, as text
OVER = 1  # in the first byte: nobody needs to be told any more
_WATCHER = Path(__file__).with_name("mpi_watcher.py")


class Board:
    """The places of the ranks of one host.

    Args:
        path: the file; made by the rank that calls `create`.
        slot: number of this rank on its host.
        rank: its number in the job.
    """

    def __init__(self, path: str, slot: int, rank: int) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._place = SLOT * (1 + slot)
        self._head = f"{os.getpid()} {rank} ".encode()
        self.post(b"the start")

    @staticmethod
    def create(ranks: int) -> str:
        """Makes the file for so many ranks; returns its path."""
        descriptor, path = tempfile.mkstemp(prefix="poptransformer-ranks-")
        os.truncate(descriptor, SLOT * (1 + ranks))
        os.close(descriptor)
        return path

    @staticmethod
    def watch(path: str) -> None:
        """Starts the watcher of a file that all ranks have opened, and removes its name."""
        with open(path, "rb") as file:
            os.unlink(path)
            # In a session of its own, and without a package to import: it must be there before something happens, and
            # a moment after it.
            subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WATCHER), str(file.fileno())],
                pass_fds=[file.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def post(self, node: bytes) -> None:
        """Notes where this rank is."""
        text = (self._head + node)[: SLOT - 1] + b"\0"
        self._map[self._place : self._place + len(text)] = text

    def close(self) -> None:
        """Says that the job is over, or that its error has been told."""
        self._map[0] = OVER
