# SPDX-License-Identifier: Apache-2.0
"""Time and memory of this process, phase by phase, as Linux counts them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FIELDS = {"VmHWM": "peak_bytes", "VmRSS": "rss_bytes", "RssAnon": "anon_bytes", "RssFile": "file_bytes"}


def memory(process: int | str = "self") -> dict[str, int]:
    """Resident memory of a process in bytes: `peak_bytes` so far, and `rss_bytes`, `anon_bytes`, `file_bytes` now."""
    found = {}
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            found[_FIELDS[name]] = int(value.split()[0]) * 1024
    return found


class Phases:
    """Adds up wall and CPU seconds by name, and notes the memory after each phase."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            entry = self.found.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
            entry["seconds"] += time.perf_counter() - wall
            entry["cpu_seconds"] += time.process_time() - cpu
            entry |= memory()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Measures every call of `owner.attribute`."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, measured)
