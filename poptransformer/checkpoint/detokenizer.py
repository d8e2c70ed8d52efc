# SPDX-License-Identifier: Apache-2.0
"""Turning token ids into text one at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import NamedTuple

_REPLACEMENT = "\ufffd"
# Clean-up removes spaces around punctuation; its patterns are at most four characters long and rarely chain.
_CLEAN_UP_REACH = 16


class TokenTraits(NamedTuple):
    """What streaming must know of a token.

    Attributes:
        is_skipped: Whether it leaves no trace in the text.
        is_byte: Whether it stands for one byte, like `<0xE4>`.
        length: Length of its text where it stands alone.
    """

    is_skipped: bool
    is_byte: bool
    length: int


class StreamDecoder:
    """Incremental detokenizer: the pieces it returns add up to the decoding of all ids at once.

    It decodes a short window of recent ids and returns what is new and final. Text is final unless it ends in
    a replacement character (half of a UTF-8 character), or in bytes that a SentencePiece vocabulary spells
    one token each (their decoder judges a run of bytes as a whole).

    Args:
        decode: Decodes a list of ids.
        traits: Returns the traits of an id. Called for each token, so it should remember them.
        cleans_up: Whether `decode` edits spaces around punctuation, so that a later id changes earlier text.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        traits: Callable[[int], TokenTraits],
        cleans_up: bool = False,
    ) -> None:
        self._decode = decode
        self._traits = traits
        self._cleans_up = cleans_up
        self._window: list[int] = []
        self._sent = 0

    def put(self, token_id: int) -> str:
        """Add one id and return the text that became final, possibly none.

        Args:
            token_id: The next id.
        """
        token_id = int(token_id)
        is_skipped, is_byte, length = self._traits(token_id)
        if is_skipped:
            return ""
        self._window.append(token_id)
        if is_byte:
            return ""
        text = self._decode(self._window)
        if self._cleans_up:
            return self._advance(text, max(0, len(text) - _CLEAN_UP_REACH))
        if text.endswith(_REPLACEMENT):
            return self._advance(text, len(text) - 1)
        piece = self._advance(text, len(text))
        # The last id stays as context, because a decoder may treat the first id of a text differently.
        self._window, self._sent = [token_id], length
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


class ByteStreamDecoder:
    """The same for vocabularies whose tokens are runs of bytes, whatever stands beside them: GPT-2's kind.

    It looks up bytes and decodes them, a tenth of the work of decoding a window of ids.

    Args:
        token_bytes: Returns the bytes of an id. Called for each token, so it should remember them.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._held = b""

    def put(self, token_id: int) -> str:
        """Add one id and return the text that became final, possibly none."""
        data = self._held + self._token_bytes(int(token_id))
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def flush(self) -> str:
        """Return the text held back, and start over."""
        data, self._held = self._held, b""
        return data.decode("utf-8", "replace")
