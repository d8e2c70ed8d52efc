# SPDX-License-Identifier: Apache-2.0
"""A comparison as a picture: one row of bar charts per model, ours in colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.catalog import MODELS, OURS
from bench.summary import LOWER_IS_BETTER, METRICS, Figures, figures

COLOURS = {True: "#c8452e", False: "#9aa5b1"}  # ours, peers
PANEL_WIDTH, BAR_HEIGHT, MARGIN = 4.2, 0.22, 1.1  # inches


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Writes the picture."""
    found = figures(results["runs"])
    models = [model for model in MODELS if any(key.model == model for key in found)]
    metrics = [name for name in METRICS if any(name in row for row in found.values())]
    heights = [MARGIN + BAR_HEIGHT * sum(key.model == model for key in found) for model in models]
    figure, axes = pyplot.subplots(
        len(models),
        len(metrics),
        figsize=(PANEL_WIDTH * len(metrics), sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for row, model in zip(axes, models, strict=True):
        row[0].set_ylabel(model)
        for panel, metric in zip(row, metrics, strict=True):
            _panel(panel, found, model, metric)
    figure.suptitle(f"{results['machine']['cpu']}, {results['threads']} threads")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(panel: Axes, found: Figures, model: str, metric: str) -> None:
    """Bars with medians, the best on top; the thin lines go from the lowest to the highest value."""
    rows = [(key, row[metric]) for key, row in found.items() if key.model == model and metric in row]
    rows.sort(key=lambda item: item[1].median, reverse=metric in LOWER_IS_BETTER)
    medians = [figure.median for _, figure in rows]
    low = [median - min(figure.values) for median, (_, figure) in zip(medians, rows, strict=True)]
    high = [max(figure.values) - median for median, (_, figure) in zip(medians, rows, strict=True)]
    panel.barh(
        [f"{key.title} " for key, _ in rows],
        medians,
        xerr=[low, high],
        color=[COLOURS[key.engine == OURS] for key, _ in rows],
        error_kw={"linewidth": 0.8},
    )
    panel.set_title(METRICS[metric] + (" (less is better)" if metric in LOWER_IS_BETTER else ""), fontsize=9)
    panel.tick_params(labelsize=8)
