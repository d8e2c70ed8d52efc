# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger("poptransformer.report.progress")

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Advance]:
    """Shows how far a step has come, while the block runs.

    On a terminal a bar on stderr, gone when the step ends. Elsewhere a log line every ten seconds and one at
    the end. Nothing where nobody has asked for log lines: the package is silent when used as a library.

        with progress("loading", total=len(names)) as advance:
            for name in names:
                load(name)
                advance(1)

    Args:
        description: what is being done.
        total: how many units that takes; None where nobody knows, which shows the time alone.

    Yields:
        A function to call with the number of units just done.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield lambda units: None
    elif _is_terminal():
        with _bar(description, total) as advance:
            yield advance
    else:
        lines = _Lines(description, total)
        yield lines.advance
        lines.write()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def _bar(description: str, total: int | None) -> Iterator[Advance]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = [
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn() if total is not None else rich_progress.TextColumn(""),
        rich_progress.TimeElapsedColumn(),
    ]
    # Rich takes over stderr meanwhile and draws log lines above the bar; stdout stays as it is.
    with rich_progress.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=True
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda units: bar.advance(task, units)


class _Lines:
    """Log lines in place of a bar."""

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done = description, total, 0
        self.start = self.last = time.monotonic()

    def advance(self, units: int) -> None:
        self.done += units
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        share = f" {self.done} of {self.total}" if self.total is not None else ""
        logger.info("%s:%s after %.1f s", self.description, share, self.last - self.start)
