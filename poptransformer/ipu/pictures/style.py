# SPDX-License-Identifier: Apache-2.0
"""Colours and files of all pictures. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which people with colour-blindness can tell apart.
MEMORY = {
    "weights": "#0072B2",
    "KV cache": "#56B4E9",
    "activations": "#009E73",
    "partials": "#E69F00",
    "code": "#999999",
}
TIME = {"compute": "#0072B2", "exchange": "#E69F00", "sync": "#999999", "link": "#D55E00"}
TIME_WORDS = {
    "compute": "compute",
    "exchange": "exchange between tiles",
    "sync": "sync",
    "link": "IPU-Links and host",
}
PRECISIONS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
LIMIT = "#B00020"
DPI = 130
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}


@contextlib.contextmanager
def picture(path: Path, width: float = 10.0, height: float = 5.5, ratios: Sequence[float] = (1.0,)) -> Iterator[Any]:
    """Makes a figure with axes below each other, and writes it when the block ends.

    Args:
        path: the PNG file.
        width: inches.
        height: inches.
        ratios: heights of the axes, in relation to each other.

    Yields:
        The figure and its axes, a list.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    yield figure, list(axes)
    figure.savefig(path, dpi=DPI)


def note(figure: Any, text: str) -> None:
    """Puts a line of small print below everything."""
    figure.supxlabel(text, fontsize=8, color="#555555")
