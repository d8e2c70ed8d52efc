# SPDX-License-Identifier: Apache-2.0
"""The loss of every step: a table on disk, and its picture."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from poptransformer.checkpoint.files import write_text

logger = logging.getLogger(__name__)

TABLE, PICTURE = "loss.csv", "loss.png"
COLUMNS = ("step", "loss", "learning_rate")
Row = tuple[int, float, float]


class LossHistory:
    """Losses and learning rates by step, in `<folder>/loss.csv`.

    Args:
        folder: made if it does not exist.
        step: rows up to that step are kept from an earlier run, later ones were never reached.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rows: list[Row] = [row for row in _read(folder / TABLE) if row[0] <= step]
        lines = [",".join(COLUMNS), *(_line(row) for row in self.rows)]
        write_text(folder / TABLE, "\n".join(lines) + "\n")
        self._file = (folder / TABLE).open("a", encoding="utf-8", buffering=1)

    def add(self, step: int, loss: float, rate: float) -> None:
        """Adds a step."""
        self.rows.append((step, loss, rate))
        self._file.write(_line(self.rows[-1]) + "\n")

    def close(self) -> None:
        """Closes the table and draws the picture."""
        self._file.close()
        if self.rows:
            draw(self.rows, self.folder / PICTURE)


def _line(row: Row) -> str:
    return ",".join(map(repr, row))


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [(int(row[0]), float(row[1]), float(row[2])) for row in rows if len(row) == len(COLUMNS)]


def draw(rows: list[Row], path: Path) -> None:
    """Draws losses, on a logarithmic scale, and the learning rate; a warning where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("No %s: matplotlib is not installed (pip install -r requirements-train.txt).", path.name)
        return
    steps, losses, rates = zip(*rows, strict=True)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#c8452e", linewidth=0.8)
    axes.set(xlabel="step", ylabel="loss", yscale="log" if min(losses) > 0 else "linear")
    axes.grid(alpha=0.3)
    other = axes.twinx()
    other.plot(steps, rates, color="#9aa5b1", linewidth=0.8)
    other.set_ylabel("learning rate")
    figure.savefig(path, dpi=110)
