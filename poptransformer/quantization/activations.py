# SPDX-License-Identifier: Apache-2.0
"""What calibration learns about the inputs of products: the float graph runs on a text, and some values are watched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poptransformer.errors import ConfigError

# Runs the float graph on tokens int64 [B, L] and returns the named values, fp32 [B, L, K] each.
RunGraph = Callable[[np.ndarray, Sequence[str]], Mapping[str, np.ndarray]]

# Added to the diagonal of a hessian, as a share of its mean: few tokens know little of the directions they never take.
_DAMPING = 0.01


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

    @functools.cached_property
    def feedback(self) -> Feedback | None:
        """How errors of columns are made up for, shared by all products with this input; None without a hessian."""
        if self.hessian is None or not self.mean_square.any():
            return None
        return Feedback.of(self.hessian)


@dataclass(frozen=True, eq=False)
class Feedback:
    """The order in which columns are rounded, and how the error of each is spread over those after it.

    With R the upper triangular root of the damped hessian, H = R R^T, an error d of the weight costs |R^T d|^2. Its
    part j is R_jj d_j plus what the errors before it add, which is why column j is best rounded at
    w_j + (sum over k < j of R_kj d_k) / R_jj: GPTQ's update, without an inverse.

    Attributes:
        order: int64 `[K]`, columns by the mean square of their input, largest first: what matters most is rounded
            while there is most left to make up for it.
        factor: fp32 `[K, K]`, lower triangular, R_kj / R_jj in row j and column k, in that order.
        importance: fp32 `[K]`, in the weight's own order: what an error of each column costs after those that follow
            have made up for it, R_jj^2.
    """

    order: np.ndarray
    factor: np.ndarray
    importance: np.ndarray

    @classmethod
    def of(cls, hessian: np.ndarray) -> Feedback:
        """Factorizes a hessian.

        Args:
            hessian: fp32 `[K, K]`.

        Raises:
            ConfigError: it holds NaN or infinity.
        """
        diagonal = np.diag(hessian)
        if not np.isfinite(diagonal).all():
            raise ConfigError("Calibration met activations that are NaN or infinite. Use another calibration text.")
        order = np.argsort(-diagonal, kind="stable")
        backwards = order[::-1]
        # The lower root of the hessian with both axes turned round is R, turned round.
        lower = _root(hessian[np.ix_(backwards, backwards)].astype(np.float64))
        scale = np.diag(lower).copy()
        lower /= scale
        importance = np.empty(len(order), np.float32)
        importance[backwards] = np.square(scale)
        return cls(order, np.ascontiguousarray(lower.T[::-1, ::-1], np.float32), importance)


def _root(hessian: np.ndarray) -> np.ndarray:
    """Returns the lower triangular root of a hessian, which is damped in place."""
    mean = float(np.diag(hessian).mean())
    for damping in (_DAMPING, 10 * _DAMPING, 1.0):
        hessian[np.diag_indices_from(hessian)] += damping * mean
        try:
            return np.linalg.cholesky(hessian)
        except np.linalg.LinAlgError:
            continue
    raise ConfigError("The activations of calibration cannot be told apart. Use a longer calibration text.")


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
    sums: dict[str, _Sums] = {}
    for tokens in windows:
        for name, values in run(tokens, names).items():
            rows = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
            sums.setdefault(name, _Sums(rows.shape[1], hessians)).add(rows)
    return {name: total.mean() for name, total in sums.items()}


class _Sums:
    """Running sums of one value."""

    def __init__(self, depth: int, hessians: bool) -> None:
        self.rows = 0
        self.amax = 0.0
        self.squares = np.zeros(depth, np.float64)
        self.products = np.zeros((depth, depth), np.float32) if hessians else None

    def add(self, rows: np.ndarray) -> None:
        self.rows += len(rows)
        self.amax = max(self.amax, float(np.abs(rows).max()))
        self.squares += np.square(rows).sum(axis=0)
        if self.products is not None:
            self.products += rows.T @ rows

    def mean(self) -> ActivationStats:
        mean_square = (self.squares / self.rows).astype(np.float32)
        if self.products is not None:
            self.products /= np.float32(self.rows)
        return ActivationStats(self.rows, self.amax, mean_square, self.products)
