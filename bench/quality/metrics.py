# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a text, and how far one model's predictions are from another's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

ROWS = 64  # positions at a time: each needs some float64 arrays as wide as the vocabulary


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One window's predictions, each array `[T]`, one value per predicted token.

    Attributes:
        losses: negative log-likelihood of the real token, in nats.
        reference_losses: the reference's.
        divergences: Kullback-Leibler divergence from the reference's distribution to this one, in nats.
        agrees: whether the likeliest token is the reference's.
    """

    losses: np.ndarray
    reference_losses: np.ndarray
    divergences: np.ndarray
    agrees: np.ndarray


def compare(logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> Predictions:
    """Compares two models' logits.

    Args:
        logits: `[T, V]`.
        reference: `[T, V]`, the reference's.
        targets: int `[T]`, the tokens that really follow.
    """
    blocks = [slice(start, start + ROWS) for start in range(0, len(targets), ROWS)]
    return join(_compare_rows(logits[rows], reference[rows], targets[rows]) for rows in blocks)


def _compare_rows(logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> Predictions:
    mine, other = _log_softmax(logits), _log_softmax(reference)
    rows = np.arange(len(targets))
    return Predictions(
        -mine[rows, targets],
        -other[rows, targets],
        np.sum(np.exp(other) * (other - mine), axis=1),
        logits.argmax(axis=1) == reference.argmax(axis=1),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def join(parts: Iterable[Predictions]) -> Predictions:
    """Puts windows together."""
    listed = list(parts)
    return Predictions(
        *(np.concatenate([getattr(part, field.name) for part in listed]) for field in dataclasses.fields(Predictions))
    )


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a table shows of one precision.

    Attributes:
        tokens: predicted tokens.
        perplexity: of the text.
        reference_perplexity: the reference's.
        change: relative change of the perplexity.
        uncertainty: standard error of `change`, from the spread of the tokens' differences.
        divergence: mean Kullback-Leibler divergence, in nats per token.
        agreement: share of the positions whose likeliest token is the reference's.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    change: float
    uncertainty: float
    divergence: float
    agreement: float


def summarize(found: Predictions) -> Quality:
    """Means over all tokens."""
    differences = found.losses - found.reference_losses
    return Quality(
        tokens=len(differences),
        perplexity=math.exp(found.losses.mean()),
        reference_perplexity=math.exp(found.reference_losses.mean()),
        change=math.expm1(differences.mean()),
        uncertainty=float(differences.std() / math.sqrt(len(differences))),
        divergence=float(found.divergences.mean()),
        agreement=float(found.agrees.mean()),
    )
