# SPDX-License-Identifier: Apache-2.0
"""Program that waits for the first rank of a host to end, and says where it was if nobody else can.

    python mpi_watcher.py DESCRIPTOR   (of the file that `mpi_board.Board` describes)

It imports nothing of this package: it is started by its path.
"""

import mmap
import os
import select
import sys

SLOT, OVER = 256, 1  # as in mpi_board.py


def watch(descriptor: int) -> None:
    """Returns when a rank has ended."""
    size = os.fstat(descriptor).st_size
    board = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    poll = select.poll()
    slots = {}
    for start in range(SLOT, size, SLOT):
        process, rank, _ = read(board, start)
        try:
            watched = os.pidfd_open(process)
        except ProcessLookupError:
            report(board, rank, start)
            return
        slots[watched] = rank, start
        poll.register(watched, select.POLLIN)
    ended = [slots[watched] for watched, _ in poll.poll()]
    report(board, *ended[0])


def read(board: mmap.mmap, start: int) -> tuple[int, int, str]:
    """Returns process, rank and place of a slot."""
    process, rank, node = board[start : start + SLOT].partition(b"\0")[0].decode(errors="replace").split(" ", 2)
    return int(process), int(rank), node


def report(board: mmap.mmap, rank: int, start: int) -> None:
    """Says where a rank has ended, unless the job is over."""
    if board[0] != OVER:
        node = read(board, start)[2]
        sys.stderr.write(f"error: rank {rank} was killed or crashed; it was last in {node}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
