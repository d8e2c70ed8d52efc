# SPDX-License-Identifier: Apache-2.0
"""Quantization with knowledge of the inputs: statistics of activations, and weights rounded to suit them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poptransformer.quantization.encode import encode
from poptransformer.quantization.packed import PackedWeight
from poptransformer.quantization.spec import WeightSpec

# Runs the float graph on tokens int64 [B, L] and returns the named values, fp32 [B, L, K] each.
RunGraph = Callable[[np.ndarray, Sequence[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class ActivationStats:
    """What calibration saw at one place of the graph: the input of one or several products.

    Attributes:
        rows: tokens seen.
        amax: the largest magnitude.
        mean_square: fp32 `[K]`, the mean squared value of each column.
        hessian: fp32 `[K, K]`, the mean of x^T x, where it was asked for.
    """

    rows: int
    amax: float
    mean_square: np.ndarray
    hessian: np.ndarray | None = None


def collect(
    run: RunGraph, windows: Iterable[np.ndarray], names: Sequence[str], hessians: bool = False
) -> dict[str, ActivationStats]:
    """Runs the float graph over calibration text and gathers statistics of some of its values.

    Args:
        run: runs the graph, see `RunGraph`.
        windows: tokens, int64 `[B, L]` each.
        names: the values.
        hessians: gather x^T x too: K * K * 4 bytes for each name.
    """
    sums: dict[str, ActivationStats] = {}
    for tokens in windows:
        for name, values in run(tokens, names).items():
            rows = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
            seen = ActivationStats(
                len(rows), float(np.abs(rows).max()), np.square(rows).sum(0), rows.T @ rows if hessians else None
            )
            sums[name] = _add(sums[name], seen) if name in sums else seen
    return {name: _mean(stats) for name, stats in sums.items()}


def _add(a: ActivationStats, b: ActivationStats) -> ActivationStats:
    hessian = None if a.hessian is None or b.hessian is None else a.hessian + b.hessian
    return ActivationStats(a.rows + b.rows, max(a.amax, b.amax), a.mean_square + b.mean_square, hessian)


def _mean(sums: ActivationStats) -> ActivationStats:
    hessian = None if sums.hessian is None else sums.hessian / sums.rows
    return ActivationStats(sums.rows, sums.amax, sums.mean_square / sums.rows, hessian)


def encode_calibrated(
    weight: np.ndarray, spec: WeightSpec, stats: ActivationStats, name: str = "the weight"
) -> PackedWeight:
    """Quantizes a weight so that its product with the inputs that calibration saw changes least.

    With a hessian each column is rounded knowing the error of those before it (GPTQ); without one the inputs' mean
    squares weigh the search for scales.

    Args:
        weight: `[N, K]`.
        spec: as in `encode`.
        stats: of the weight's input.
        name: what errors call the weight.
    """
    return encode(weight, spec, stats.mean_square, name)
