# SPDX-License-Identifier: Apache-2.0
"""Processes that are measured: one at a time on the machine, and before all others where that is permitted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HIGHEST = -20


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Holds a lock that others who measure on this machine take too; no path, no lock."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def quiet_output(
    command: Sequence[str],
    *,
    text: Callable[[float], str] | None = None,
    lock: Path | None = None,
    prepare: Callable[[], None] | None = None,
    timeout: float | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a command and returns its standard output.

    Args:
        command: the program and its arguments.
        text: from `time.monotonic()` at the start of the process to its standard input.
        lock: see `locked`.
        prepare: called right before the start, with the lock held.
        timeout: seconds after which the process is killed.
        cwd: the folder that it runs in.
        environment: its environment.

    Raises:
        subprocess.CalledProcessError: it failed; `stderr` has its messages.
        subprocess.TimeoutExpired: it took too long.
    """
    with locked(lock), tempfile.TemporaryFile("w+") as source:
        if prepare:
            prepare()
        if text:
            source.write(text(time.monotonic()))
            source.seek(0)
        return subprocess.run(
            command,
            stdin=source,
            capture_output=True,
            text=True,
            check=True,
            timeout=timeout,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            preexec_fn=raise_priority,
        ).stdout


def raise_priority() -> None:
    """Puts this process before all others, if it may.

    Where the scheduler groups processes by session (`kernel.sched_autogroup_enabled`), a process's own priority counts
    inside its session alone, and it is the session's that must be raised.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(HIGHEST), encoding="ascii")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST)
