# SPDX-License-Identifier: Apache-2.0
"""Generation step by step as text: detokenized, and ended by stop strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from poptransformer.generation.params import SamplingParams
from poptransformer.generation.runtime import Runtime
from poptransformer.generation.stop import StopStringFilter
from poptransformer.generation.stream import TokenSteps


class Detokenizer(Protocol):
    """Turns ids into text as they come."""

    def put(self, token_id: int, /) -> str:
        """Adds an id and returns the text that it completes."""

    def flush(self) -> str:
        """Returns the text that no further id will change any more."""


class RowText:
    """Text of one row: detokenized, and cut before its first stop string.

    Args:
        detokenizer: a new one.
        stops: the row's stop strings.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._filter = StopStringFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._filter.stopped

    def put(self, token_id: int) -> str:
        """Adds an id and returns the text that may be shown."""
        return self._filter.push(self._detokenizer.put(token_id))[0]

    def finish(self) -> str:
        """Returns what was held back."""
        return self._filter.push(self._detokenizer.flush())[0] + self._filter.flush()


class TextSteps(Iterator[list[str | None]]):
    """Iterator over steps: the new text of each row, None for a row that has ended before.

    A step's text is empty while it is held back: half of a character, or what may be the beginning of a stop
    string. Stop tokens have no text.

    Attributes:
        tokens: the steps below, with counts and finish reasons.
        ids: the last step's ids.

    Args:
        tokens: steps that nobody else iterates.
        texts: one per row.
        stop_token_ids: as given to `tokens`.
    """

    def __init__(self, tokens: TokenSteps, texts: Sequence[RowText], stop_token_ids: frozenset[int]) -> None:
        self.tokens = tokens
        self.ids: list[int | None] = []
        self._texts = texts
        self._stop_token_ids = stop_token_ids

    def __next__(self) -> list[str | None]:
        self.ids = next(self.tokens)
        return [None if token is None else self._piece(row, token) for row, token in enumerate(self.ids)]

    def _piece(self, row: int, token: int) -> str:
        text, reason = self._texts[row], self.tokens.finish_reasons[row]
        piece = "" if reason == "stop" and token in self._stop_token_ids else text.put(token)
        if not text.stopped and reason is not None:
            piece += text.finish()
        if text.stopped:
            self.tokens.end(row)
        return piece


def stream_text(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    stop_token_ids: frozenset[int],
    detokenizer: Callable[[], Detokenizer],
) -> TextSteps:
    """Checks a batch at once, and generates its text as it is iterated; see `TextSteps`.

    Args:
        runtime: runs the model.
        prompts: ids of each row.
        params: settings of each row.
        stop_token_ids: ids that end a row.
        detokenizer: makes a new incremental detokenizer, such as `tokenizer.stream`.

    Raises:
        ConfigError: see `check_prompts`.
    """
    tokens = TokenSteps(runtime, prompts, params, stop_token_ids)
    return TextSteps(tokens, [RowText(detokenizer(), row.stop) for row in params], stop_token_ids)
