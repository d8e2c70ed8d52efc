# SPDX-License-Identifier: Apache-2.0
"""Groups of ranks, as the native library has them. What is behind one: threads here, MPI in `parallel.mpi`."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from poptransformer import native
from poptransformer.errors import PopTransformerError

_POINTER, _TEXT, _INT, _LONG = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64
# Name of a function of the library: what it returns, what it takes.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "thread_group": (_POINTER, [_INT, _LONG, _INT, _INT]),
    "thread_group_join": (_POINTER, [_POINTER, _INT]),
    "thread_group_abort": (None, [_POINTER, _TEXT]),
    "thread_group_free": (None, [_POINTER]),
    "callback_communicator": (_POINTER, [_INT, _INT, _POINTER]),
    "communicator_free": (None, [_POINTER]),
    "communicator_waited": (_LONG, [_POINTER]),
    "communicator_last_sent": (_LONG, [_POINTER]),
    "communicator_last_received": (_LONG, [_POINTER]),
    "broadcast": (_INT, [_POINTER, _TEXT, _POINTER, _LONG, _INT]),
    "all_reduce": (_INT, [_POINTER, _TEXT, _POINTER, _POINTER, _LONG]),
    "use_groups": (None, [_POINTER, _POINTER]),
    "use_own_pool": (None, []),
    "last_error": (_TEXT, []),
}


@functools.cache
def library_function(name: str) -> Any:
    """Returns `poptransformer_<name>` of the native library.

    Raises:
        PopTransformerError: there is no library; ranks can talk to each other by it alone.
    """
    function = native.function(f"poptransformer_{name}") if native.available() else None
    if function is None:
        raise PopTransformerError(
            "A model of several replicas or stages needs the native library, by which they talk to each other. "
            "Run `make` in the project's folder, or set num_replicas=1 and layer_per_ipu=null."
        )
    function.restype, function.argtypes = _SIGNATURES[name]
    return function


class Communicator:
    """One rank's end of a group.

    Attributes:
        rank: number in the group.
        size: ranks of the group.
    """

    def __init__(self, handle: int, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.handle = handle
        self._free = library_function("communicator_free")

    def __del__(self) -> None:
        self._free(self.handle)

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for others so far."""
        return library_function("communicator_waited")(self.handle) / 1e9

    @property
    def last_transfers(self) -> tuple[float, float]:
        """When this rank last got a message of another stage, and last sent one; as `time.perf_counter` on Linux."""
        names = ("communicator_last_received", "communicator_last_sent")
        received, sent = (library_function(name)(self.handle) / 1e9 for name in names)
        return received, sent

    def broadcast(self, array: np.ndarray, root: int, what: str) -> None:
        """Writes what rank `root` has in `array` into every rank's; `what` says so in errors."""
        data = array.ctypes.data
        if library_function("broadcast")(self.handle, what.encode(), data, array.nbytes, root):
            raise PopTransformerError(library_function("last_error")().decode())

    def all_reduce(self, array: np.ndarray, what: str) -> np.ndarray:
        """Returns the sum of all ranks' arrays, float32; `what` says so in errors."""
        total = np.empty_like(array)
        pointers = array.ctypes.data, total.ctypes.data
        if library_function("all_reduce")(self.handle, what.encode(), *pointers, array.size):
            raise PopTransformerError(library_function("last_error")().decode())
        return total


class ThreadGroup:
    """A group whose ranks are threads of this process.

    Args:
        size: ranks.
        timeout: seconds that a rank waits for another one before the group ends with an error.
        first: number that rank 0 has in the whole job, for errors.
        stride: from one rank's number to the next.
    """

    def __init__(self, size: int, timeout: float, first: int = 0, stride: int = 1) -> None:
        self.size = size
        self._handle = library_function("thread_group")(size, int(1000 * timeout), first, stride)
        self._free = library_function("thread_group_free")

    def __del__(self) -> None:
        self._free(self._handle)

    def join(self, rank: int) -> Communicator:
        """Returns the end of one rank."""
        return Communicator(library_function("thread_group_join")(self._handle, rank), rank, self.size)

    def abort(self, reason: str) -> None:
        """Makes all ranks that wait, or come later, fail with `reason`."""
        library_function("thread_group_abort")(self._handle, reason.encode())


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups that a rank belongs to.

    Attributes:
        replicas: the replicas of its stage; None where there is one.
        stages: the stages of its replica; None where there is one.
    """

    replicas: Communicator | None = None
    stages: Communicator | None = None

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for others so far."""
        return sum(group.waited for group in (self.replicas, self.stages) if group is not None)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Gives the sessions that this thread creates in the block these groups."""
        use = library_function("use_groups")
        use(*(None if group is None else group.handle for group in (self.replicas, self.stages)))
        try:
            yield
        finally:
            use(None, None)


def use_own_pool() -> None:
    """Gives the calling thread's kernels a thread pool of their own."""
    library_function("use_own_pool")()
