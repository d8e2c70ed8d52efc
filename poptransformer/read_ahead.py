# SPDX-License-Identifier: Apache-2.0
"""Files on their way from the disk into the page cache, while this process does something else."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_LARGE = 1 << 20  # bytes; of a larger file, kernels read no more than its beginning at one request


def read_ahead(folder: Path) -> threading.Thread:
    """Begins to read the files of a folder into the page cache and returns at once.

    A model's weights are mapped: kernels that find a page missing wait for the disk, again and again. What cannot be
    read is left to whoever opens it, and so is what would fill half of the memory, since its end might push out its
    beginning. What is in memory already takes 20 microseconds a megabyte.

    Args:
        folder: its files; those in folders below it are left alone.

    Returns:
        The thread that reads the large ones. It ends with the last file, and no process waits for it to end.
    """
    large = []
    with contextlib.suppress(OSError):
        for file, size in _opened(folder):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            if _LARGE < size < _memory() // 2:
                large.append((size, file))
            else:
                file.close()
    thread = threading.Thread(target=_read, args=[large], name="poptransformer-read-ahead", daemon=True)
    thread.start()
    return thread


def _memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _opened(folder: Path) -> Iterator[tuple[io.FileIO, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield io.FileIO(entry.path), entry.stat().st_size


def _read(files: list[tuple[int, io.FileIO]]) -> None:
    """Reads whole files, the smallest first, and closes them."""
    with open(os.devnull, "wb") as nowhere:
        for size, file in sorted(files, key=lambda item: item[0]):
            with file, contextlib.suppress(OSError):
                _send(nowhere.fileno(), file.fileno(), size)


def _send(target: int, source: int, size: int) -> None:
    """Lets the kernel read `size` bytes: nothing is copied, and one call reads 2 GB without Python's lock."""
    position = 0
    while position < size:
        count = os.sendfile(target, source, position, size - position)
        if count == 0:  # the file has become shorter
            return
        position += count
