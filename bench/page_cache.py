# SPDX-License-Identifier: Apache-2.0
"""The page cache of a model's own files: dropping them from it, and seeing what is left."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def evict(path: Path) -> float:
    """Drops a file, or all files of a folder, from the page cache; nothing else on the machine is touched.

    Returns:
        The share of their pages that is still there: another process may have them mapped.
    """
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on the disk yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return resident_share(path)


def resident_share(path: Path) -> float:
    """The share of the pages of a file, or of a folder's files, that the page cache holds."""
    pages = [_resident_pages(file) for file in _files(path)]
    total = sum(found.size for found in pages)
    return sum(int(np.count_nonzero(found & 1)) for found in pages) / total if total else 0.0


def _files(path: Path) -> Iterator[Path]:
    candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
    return (file for file in candidates if file.is_file() and file.stat().st_size)


def _resident_pages(file: Path) -> np.ndarray:
    """One byte for each page; its lowest bit says whether the page is in memory."""
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        start, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped))
        failed = libc.mincore(start, size, ctypes.c_void_p(pages.ctypes.data))
        del view  # a mapping that has views cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore failed for {file}")
    return pages
