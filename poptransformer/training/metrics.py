# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation, summed up over its batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Metric:
    """A figure over all batches of an evaluation.

    A model keeps its metrics as attributes and updates them in `__call__` while it is evaluated.

    Args:
        name: what it is reported as.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.total, self.count = 0.0, 0.0

    def compute(self) -> float:
        """Returns the figure; not a number where nothing was counted."""
        return self.total / self.count if self.count else math.nan


class AccuracyMetric(Metric):
    """The share of labels that are predicted."""

    @torch.no_grad()
    def update(self, labels: Tensor, predictions: Tensor, weights: Tensor | None = None) -> None:
        """Adds a batch: integers of one shape, and what each label counts for."""
        right = (labels == predictions).float()
        weight = torch.ones_like(right) if weights is None else weights.float()
        self.total += float((right * weight).sum())
        self.count += float(weight.sum())


class PerplexityMetric(Metric):
    """The exponential of the mean loss of a token."""

    @torch.no_grad()
    def update(self, labels: Tensor, logits: Tensor, weights: Tensor | None = None) -> None:
        """Adds a batch: integers `[...]`, logits `[..., V]`, and what each label counts for."""
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten().long(), reduction="none"
        )
        weight = torch.ones_like(losses) if weights is None else weights.flatten().float()
        self.total += float((losses * weight).sum())
        self.count += float(weight.sum())

    def compute(self) -> float:
        """Returns the figure; not a number where nothing was counted."""
        return math.exp(self.total / self.count) if self.count else math.nan
