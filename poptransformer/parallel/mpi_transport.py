# SPDX-License-Identifier: Apache-2.0
"""A group of MPI ranks as the kernels' communicator: functions that they call from within onnxruntime.

Sums are made in the order of the ranks, as threads make them: MPI's own reduction may take another order, and the same
model would give other last bits on another number of hosts.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from poptransformer.parallel.communicator import Communicator, library_function
from poptransformer.parallel.mpi_wait import Waiter

# Up to this size every rank gets all ranks' values and adds them up; above it, each adds up its share for all.
GATHERED_BYTES = 1 << 16

_P, _L, _I, _S = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
_TYPES = {
    "all_reduce": ctypes.CFUNCTYPE(_I, _S, _P, _P, _L),
    "all_gather": ctypes.CFUNCTYPE(_I, _S, _P, _P, _L),
    "broadcast": ctypes.CFUNCTYPE(_I, _S, _P, _L, _I),
    "send": ctypes.CFUNCTYPE(_I, _S, _I, _I, _P, _L),
    "receive": ctypes.CFUNCTYPE(_I, _S, _I, _I, ctypes.POINTER(_P), ctypes.POINTER(_L)),
}


class _Callbacks(ctypes.Structure):
    """`Callbacks` of custom_ops/parallel/callbacks.h."""

    _fields_ = list(_TYPES.items())


class MPICommunicator(Communicator):
    """One rank's end of a group of processes.

    Args:
        mpi: the module `mpi4py.MPI`.
        comm: the group.
        waiter: waits for the others, with a deadline.
    """

    def __init__(self, mpi: Any, comm: Any, waiter: Waiter) -> None:
        self._mpi = mpi
        self._comm = comm
        self._waiter = waiter
        self._outbox: list[tuple[Any, bytes]] = []
        self._inbox = np.empty(0, np.uint8)
        functions = {name: self._guarded(kind, getattr(self, f"_{name}")) for name, kind in _TYPES.items()}
        self._callbacks = _Callbacks(**functions)  # the library keeps what it points to
        handle = library_function("callback_communicator")(comm.rank, comm.size, ctypes.addressof(self._callbacks))
        super().__init__(handle, comm.rank, comm.size)

    def _guarded(self, kind: Any, function: Callable[..., None]) -> Any:
        """A C function; an exception, which cannot pass through onnxruntime, ends all ranks."""

        def call(node: bytes, *arguments: Any) -> int:
            self._waiter.board.post(node)
            try:
                function(node.decode(), *arguments)
            except BaseException as error:
                traceback.print_exc()
                self._waiter.abort(f"rank {self._mpi.COMM_WORLD.rank} failed in {node.decode()}: {error}")
            return 0

        return kind(call)

    def _all_reduce(self, node: str, x: int, y: int, count: int) -> None:
        source, target = _floats(x, count), _floats(y, count)
        if 4 * count * self.size <= GATHERED_BYTES:
            every = np.empty((self.size, count), np.float32)
            self._wait(self._comm.Iallgather(source, every), node)
            _add_up(every, target)
            return
        ends = np.array([count * (rank + 1) // self.size for rank in range(self.size)])
        starts = np.concatenate([[0], ends[:-1]])
        sizes = ends - starts
        own = int(sizes[self.rank])
        every = np.empty((self.size, own), np.float32)
        places = np.arange(self.size) * own
        request = self._comm.Ialltoallv([source, (sizes, starts)], [every, (np.full(self.size, own), places)])
        self._wait(request, node)
        part = np.empty(own, np.float32)
        _add_up(every, part)
        self._wait(self._comm.Iallgatherv(part, [target, (sizes, starts)]), node)

    def _all_gather(self, node: str, x: int, y: int, size: int) -> None:
        self._wait(self._comm.Iallgather(_bytes(x, size), _bytes(y, size * self.size)), node)

    def _broadcast(self, node: str, data: int, size: int, root: int) -> None:
        self._wait(self._comm.Ibcast(_bytes(data, size), root=root), node)

    def _send(self, node: str, to: int, tag: int, data: int, size: int) -> None:
        self._outbox = [(request, kept) for request, kept in self._outbox if not request.Test()]
        message = ctypes.string_at(data, size)
        self._outbox.append((self._comm.Isend([message, self._mpi.BYTE], to, tag), message))

    def _receive(self, node: str, source: int, tag: int, data: Any, size: Any) -> None:
        found: list[Any] = []
        status = self._mpi.Status()

        def has_come() -> bool:
            message = self._comm.Improbe(source, tag, status)
            if message is not None:
                found.append(message)
            return message is not None

        self._waiter.wait(has_come, node)
        buffer = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
        self._wait(found[0].Irecv([buffer, self._mpi.BYTE]), node)
        self._inbox = buffer  # until the next message
        data[0], size[0] = buffer.ctypes.data, buffer.nbytes

    def _wait(self, request: Any, node: str) -> None:
        self._waiter.wait(request.Test, node)


def _floats(address: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (count,))


def _bytes(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))


def _add_up(every: np.ndarray, total: np.ndarray) -> None:
    """Adds rows one after the other."""
    np.add(every[0], every[1], out=total)
    for row in every[2:]:
        np.add(total, row, out=total)
