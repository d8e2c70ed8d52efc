# SPDX-License-Identifier: Apache-2.0
"""Turning token ids into text one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
# Clean-up removes spaces around punctuation; its patterns are at most four characters long and rarely chain.
_CLEAN_UP_REACH = 16


class StreamDecoder:
    """Incremental detokenizer: the pieces it returns add up to the decoding of all ids at once.

    It decodes a short window of recent ids and returns what is new and final. Text is final unless it ends in
    a replacement character (half of a UTF-8 character), or in bytes that a SentencePiece vocabulary spells
    one token each (their decoder judges a run of bytes as a whole).

    Args:
        decode: Decodes a list of ids.
        is_skipped: Tells ids that leave no trace in the text.
        is_byte: Tells tokens that stand for one byte, like `<0xE4>`.
        cleans_up: Whether `decode` edits spaces around punctuation, so that a later id changes earlier text.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        is_skipped: Callable[[int], bool],
        is_byte: Callable[[int], bool],
        cleans_up: bool = False,
    ) -> None:
        self._decode = decode
        self._is_skipped = is_skipped
        self._is_byte = is_byte
        self._cleans_up = cleans_up
        self._window: list[int] = []
        self._sent = 0

    def put(self, token_id: int) -> str:
        """Add one id and return the text that became final, possibly none.

        Args:
            token_id: The next id.
        """
        token_id = int(token_id)
        if self._is_skipped(token_id):
            return ""
        self._window.append(token_id)
        if self._is_byte(token_id):
            return ""
        text = self._decode(self._window)
        if self._cleans_up:
            return self._advance(text, max(0, len(text) - _CLEAN_UP_REACH))
        if text.endswith(_REPLACEMENT):
            return self._advance(text, len(text) - 1)
        piece = self._advance(text, len(text))
        # The last id stays as context, because a decoder may treat the first id of a text differently.
        self._window = self._window[-1:]
        self._sent = len(self._decode(self._window))
        return piece

    def flush(self) -> str:
        """Return the text held back, and start over."""
        text = self._decode(self._window) if self._window else ""
        piece = self._advance(text, len(text))
        self._window, self._sent = [], 0
        return piece

    def _advance(self, text: str, end: int) -> str:
        start, self._sent = self._sent, max(self._sent, end)
        return text[start : self._sent]
