# SPDX-License-Identifier: Apache-2.0
"""Pictures of `bench.linformer`: full attention and Linformer over n, and rows without padding over fill ratios."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot, ticker
from matplotlib.axes import Axes

GREYS = {"full": "#5b6770", "full, fused kernel": "#9aa5b1"}
COLOURS = ("#c8452e", "#e3a03a", "#3f7fb5", "#6a994e", "#8b5fbf", "#4aa6a6")  # one for each k
PANEL = (4.4, 3.4)  # inches
Medians = Mapping[tuple[str, int, str], tuple[float, float]]
Paper = Mapping[int, Mapping[int, tuple[float, float]]]


def plot_attention(medians: Medians, papers: Mapping[str, Paper], kinds: Mapping[str, str], path: Path) -> None:
    """A row for each kind: time, memory, and how much faster than full attention, with the paper's figures dashed."""
    figure, axes = pyplot.subplots(
        len(kinds), 3, figsize=(3 * PANEL[0], len(kinds) * PANEL[1]), squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(name for _, _, name in medians))
    colours = GREYS | dict(zip((name for name in names if name not in GREYS), itertools.cycle(COLOURS), strict=False))
    for row, (kind, title) in zip(axes, kinds.items(), strict=True):
        for name, colour in colours.items():
            lengths = sorted(n for of, n, other in medians if (of, other) == (kind, name))
            if not lengths:
                continue
            found = [medians[kind, n, name] for n in lengths]
            full = [medians[kind, n, "full"] for n in lengths]
            style = {"color": colour, "marker": "o", "markersize": 4, "label": name.replace("full", "full attention")}
            row[0].plot(lengths, [1e3 * seconds for seconds, _ in found], **style)
            row[1].plot(lengths, [peak / 1e6 for _, peak in found], **style)
            row[2].plot(lengths, [whole / one for (whole, _), (one, _) in zip(full, found, strict=True)], **style)
            figures = papers.get(kind, {}).get(int(name[2:]), {}) if name.startswith("k=") else {}
            known = [n for n in lengths if n in figures]
            if known:
                label = f"paper, V100, {name}"
                row[2].plot(known, [figures[n][0] for n in known], "--", color=colour, alpha=0.6, label=label)
        labels = ("milliseconds", "peak MB beyond model and input", "times faster than full attention")
        for panel, label in zip(row, labels, strict=True):
            _finish(panel, title, label, sorted({n for of, n, _ in medians if of == kind}))
        for panel in row[:2]:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    figure.suptitle("Linformer (projected to k) and full attention: one encoder layer, one row of n tokens")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _finish(panel: Axes, title: str, label: str, lengths: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(lengths, [str(n) for n in lengths])
    panel.minorticks_off()
    panel.set_xlabel("n, tokens of the row")
    panel.set_ylabel(label)
    panel.set_title(title, fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def plot_rows(
    summary: Mapping[tuple[str, float], Mapping[str, float]], kinds: Mapping[str, str], title: str, path: Path
) -> None:
    """A panel for each kind: how much faster than padded rows trimmed and packed ones are, by the fill ratio."""
    figure, axes = pyplot.subplots(
        1, len(kinds), figsize=(len(kinds) * PANEL[0], PANEL[1]), squeeze=False, sharey=True, layout="constrained"
    )
    for panel, (kind, name) in zip(axes[0], kinds.items(), strict=True):
        fills = [fill for of, fill in summary if of == kind]
        percent = [100 * fill for fill in fills]
        for way, label, colour in (
            ("packed", "packed: no padding", COLOURS[0]),
            ("trimmed", "trimmed: padded to the longest row", COLOURS[2]),
        ):
            ratios = [summary[kind, fill][f"{way}, times faster"] for fill in fills]
            panel.plot(percent, ratios, marker="o", color=colour, label=label)
        every = np.linspace(percent[0], percent[-1], 100)
        panel.plot(every, 100 / every, "--", color=GREYS["full"], label="ideal: valid tokens alone")
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set_xlabel("tokens that are no padding, %")
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    axes[0, 0].set_ylabel("times faster than padded to n")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
