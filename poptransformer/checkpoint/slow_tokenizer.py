# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that exist only as Python code inside transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SlowBackend:
    """A transformers tokenizer that has no `tokenizers` object behind it.

    Attributes:
        inner: The tokenizer.
    """

    inner: Any

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        return list(self.inner.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return the text of ids."""
        # `Tokenizer` cleans up itself, so that a stream knows about it.
        return self.inner.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self.inner.convert_tokens_to_ids(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None."""
        return self.inner.convert_ids_to_tokens(token_id)

    def bytes_of(self) -> None:
        """Return None: its code may do anything with a text."""

    def special_ids(self) -> set[int]:
        """Return the ids that `skip_special_tokens` leaves out."""
        return set(self.inner.all_special_ids)

    def size(self) -> int:
        """Return the number of tokens, added ones included."""
        return len(self.inner)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the files transformers writes for it, which say all that `config` does."""
        self.inner.save_pretrained(str(folder))
