# SPDX-License-Identifier: Apache-2.0
"""Read-only memory-mapped files, and numpy arrays that look straight into them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poptransformer.checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError


class MappedFile:
    """A file mapped read-only into memory.

    The mapping lives as long as an array made from it does. Its pages belong to the page cache: the kernel
    drops them under memory pressure, and `release` gives them back at once.

    Args:
        path: The file.

    Raises:
        CheckpointNotFoundError: If the file does not exist.
        CorruptCheckpointError: If the file is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as handle:
                self.size = handle.seek(0, 2)
                if self.size == 0:
                    raise CorruptCheckpointError(f"{path} is empty; download or convert it again")
                self.buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise CheckpointNotFoundError(f"{path} is not a file; check the path") from error

    def array(self, dtype: np.dtype, shape: Sequence[int], offset: int) -> np.ndarray:
        """Return a read-only array over part of the file, without copying.

        An offset that is not a multiple of the item size gives a copy instead, because onnxruntime reads
        weights with aligned loads.

        Args:
            dtype: Type of one item, little endian.
            shape: Shape of the array.
            offset: Where its first byte is, in bytes from the start of the file.
        """
        count = math.prod(shape)
        if count == 0:
            return _read_only(np.empty(tuple(shape), dtype))
        raw = np.frombuffer(self.buffer, np.uint8, count * dtype.itemsize, offset)
        if offset % dtype.itemsize:
            raw = _read_only(raw.copy())
        return raw.view(dtype).reshape(tuple(shape))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def release(array: np.ndarray) -> bool:
    """Tell the kernel that an array's mapped pages are no longer needed; a later read loads them again.

    Args:
        array: Any array, or a `LazyArray`; one that is not a view of a `MappedFile` is left alone.

    Returns:
        Whether pages were given back.
    """
    array = getattr(array, "stored", array)
    owner: Any = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap) or array.nbytes == 0:
        return False
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return False
    start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return False
    owner.madvise(mmap.MADV_DONTNEED, first, last - first)
    return True
