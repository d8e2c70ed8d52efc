# SPDX-License-Identifier: Apache-2.0
"""Generation step by step: one token id per row and step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.generation.params import SamplingParams, arrays
from poptransformer.generation.prompts import check_prompts, right_padded, row_limits
from poptransformer.generation.runtime import Rows, Runtime, TokenRunner, TokenRuntime
from poptransformer.generation.sampled_steps import SampledSteps


class TokenSteps(Iterator[list[int | None]]):
    """Iterator over steps: each gives one new id per row, None for a row that has ended before.

    The stop token that ends a row is given too, as the last of the row's ids. The iterator ends with its last
    row, and runs no step more than that takes.

    Attributes:
        counts: tokens generated so far, per row.
        finish_reasons: per row, None while it goes on; then "stop" (a stop token or stop string) or "length".

    Args:
        runtime: runs the model.
        prompts: ids of each row.
        params: settings of each row.
        stop_token_ids: ids that end a row, unless it has `ignore_eos`.

    Raises:
        ConfigError: see `check_prompts`; or a row wants beam search, whose tokens are known at its end only.
    """

    def __init__(
        self,
        runtime: Runtime,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        check_prompts(runtime, prompts, params)
        if any(row.num_beams > 1 for row in params):
            raise ConfigError(
                "num_beams is above 1, but a beam search knows its tokens at its end only: generate without "
                "streaming, or set num_beams=1."
            )
        self._limits = row_limits(runtime, prompts, params)
        self._runtime = runtime
        self._prompts = prompts
        self._stops = [frozenset() if row.ignore_eos else stop_token_ids for row in params]
        settings = arrays(params)
        self._penalised = bool(np.any(settings.repetition_penalty != 1.0))
        batch = len(prompts)
        self._rows = Rows(settings, self._new_history(), np.ones(batch, np.int64))
        self._runner: TokenRunner | None = None
        self._running = list(range(batch))
        self.counts = [0] * batch
        self.finish_reasons: list[str | None] = [None] * batch
        for row, limit in enumerate(self._limits):
            if limit == 0:
                self._end(row, "length")

    def end(self, row: int) -> None:
        """Ends a row after the token it has just got; for stop strings, which only the text shows."""
        if self.finish_reasons[row] is None:
            self._end(row, "stop")
        self.finish_reasons[row] = "stop"

    def __next__(self) -> list[int | None]:
        if not self._running:
            raise StopIteration
        tokens = self._prefill() if self._runner is None else self._runner.decode()
        return self._take(tokens.tolist())

    def _prefill(self) -> np.ndarray:
        """First tokens of all rows."""
        # A row's last token is never fed back, so a row that has ended writes to a slot that is still free.
        slots = max(len(self._prompts[row]) + self._limits[row] for row in self._running)
        # A prompt without room for an answer is left out: it could be longer than the slots.
        ids, lengths, _ = right_padded(
            [prompt if limit else [] for prompt, limit in zip(self._prompts, self._limits, strict=True)]
        )
        runtime = self._runtime
        runner = (
            runtime.start_tokens(self._rows, slots)
            if isinstance(runtime, TokenRuntime)
            else SampledSteps(runtime, self._rows, slots)
        )
        tokens = runner.prefill(ids, lengths)
        self._runner = runner
        return tokens

    def _take(self, tokens: list[int]) -> list[int | None]:
        """Enters one token per running row; returns the step's result."""
        result: list[int | None] = [None] * len(tokens)
        for row in list(self._running):
            token = result[row] = tokens[row]
            if self._penalised:
                self._rows.history[row, len(self._prompts[row]) + self.counts[row]] = token
            self.counts[row] += 1
            if token in self._stops[row]:
                self._end(row, "stop")
            elif self.counts[row] == self._limits[row]:
                self._end(row, "length")
        return result

    def _end(self, row: int, reason: str) -> None:
        self._running.remove(row)
        self._rows.active[row] = 0
        self.finish_reasons[row] = reason

    def _new_history(self) -> np.ndarray:
        """Tokens of each row, int64 `[B, T]`, filled up with its first; that alone if none is penalised."""
        first = np.array([[prompt[0]] for prompt in self._prompts], np.int64)
        if not self._penalised:
            return first
        capacity = max(len(prompt) + limit for prompt, limit in zip(self._prompts, self._limits, strict=True))
        history = np.repeat(first, capacity, axis=1)
        for row, prompt in zip(history, self._prompts, strict=True):
            row[: len(prompt)] = prompt
        return history


def generate_steps(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    stop_token_ids: frozenset[int] = frozenset(),
) -> TokenSteps:
    """Checks a batch at once, and generates it as it is iterated; see `TokenSteps`."""
    return TokenSteps(runtime, prompts, params, stop_token_ids)
