# SPDX-License-Identifier: Apache-2.0
"""What generation asks of whoever runs the model; `poptransformer.runtime.Runtime` is one."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from poptransformer.generation.params import SamplingArrays


@dataclasses.dataclass(frozen=True)
class Rows:
    """What steps need to know of the rows of a batch. The caller changes the arrays in place, between steps.

    Attributes:
        settings: how each row is sampled.
        history: int64 `[B, T]`, tokens of each row so far, filled up with any of them.
        active: int64 `[B]`, 1 for a row that goes on, 0 for one that stays where it is.
    """

    settings: SamplingArrays
    history: np.ndarray
    active: np.ndarray


class StepRunner(Protocol):
    """Rows in progress, with their caches."""

    def forward(self, input_ids: np.ndarray, lengths: np.ndarray, logit_positions: np.ndarray) -> Any:
        """Runs one step and appends it to the caches.

        Args:
            input_ids: int64 `[B, L]`, right-padded.
            lengths: int64 `[B]`, real tokens of each row; 0 leaves a row as it is.
            logit_positions: int64 `[B, M]`, which of the L positions get logits.

        Returns:
            Logits fp32 `[B, M, V]` as an OrtValue.
        """

    def reorder(self, rows: np.ndarray) -> None:
        """Makes row b continue what was row `rows[b]`; int64 `[B']`, where B' may differ from B."""


class TokenRunner(Protocol):
    """Rows in progress whose steps choose their next tokens themselves.

    The tokens of a step, int64 `[B]`, are valid until the next one.
    """

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Takes the prompts, int64 `[B, L]` and right-padded, and their lengths, int64 `[B]`; returns the tokens."""

    def decode(self) -> np.ndarray:
        """Takes the tokens of the step before, and returns the next."""


class Runtime(Protocol):
    """A compiled model and a sampler."""

    @property
    def max_length(self) -> int:
        """Most tokens of a row, prompt and answer together."""

    @property
    def vocab_size(self) -> int:
        """Logits per token, V."""

    @property
    def prompt_marks(self) -> tuple[tuple[int, ...], ...]:
        """Ids that a prompt must hold, one of each group."""

    def start(self, batch: int, slots: int) -> StepRunner:
        """Begins `batch` empty rows with room for `slots` tokens each."""

    def sample(self, logits: Any, history: np.ndarray, settings: SamplingArrays, step: np.ndarray) -> np.ndarray:
        """Chooses one token per row.

        Args:
            logits: fp32 `[B, V]` or `[B, 1, V]`.
            history: int64 `[B, T]`, tokens of the row so far, filled up with any of them.
            settings: how each row is sampled.
            step: int64 `[B]`, tokens that the row has generated so far.

        Returns:
            int64 `[B]`.
        """


@runtime_checkable
class TokenRuntime(Protocol):
    """A runtime whose steps can choose tokens, so that no logits come to Python."""

    def start_tokens(self, rows: Rows, slots: int) -> TokenRunner:
        """Begins empty rows with room for `slots` tokens each."""
