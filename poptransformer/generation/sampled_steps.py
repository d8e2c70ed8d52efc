# SPDX-License-Identifier: Apache-2.0
"""Tokens from a runtime that gives logits and samples in two calls."""

from __future__ import annotations

import numpy as np

from poptransformer.generation.runtime import Rows, Runtime


class SampledSteps:
    """A `TokenRunner` over any `Runtime`.

    Args:
        runtime: runs the model.
        rows: the rows.
        slots: room for tokens of each row.
    """

    def __init__(self, runtime: Runtime, rows: Rows, slots: int) -> None:
        batch = len(rows.active)
        self._runtime = runtime
        self._runner = runtime.start(batch, slots)
        self._rows = rows
        self._tokens = self._step = np.zeros(batch, np.int64)
        self._position = np.zeros((batch, 1), np.int64)

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Takes the prompts; see `TokenRunner`."""
        return self._forward(input_ids, lengths, np.maximum(lengths - 1, 0)[:, None])

    def decode(self) -> np.ndarray:
        """Takes the tokens of the step before; see `TokenRunner`."""
        return self._forward(self._tokens[:, None], self._rows.active, self._position)

    def _forward(self, input_ids: np.ndarray, lengths: np.ndarray, positions: np.ndarray) -> np.ndarray:
        logits = self._runner.forward(input_ids, lengths, positions)
        self._tokens = self._runtime.sample(logits, self._rows.history, self._rows.settings, self._step)
        self._step = self._step + 1
        return self._tokens
