# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that are a SentencePiece model and a few rules, for checkpoints whose own class is code we do not run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.errors import CorruptCheckpointError, TokenizerError
from poptransformer.checkpoint.files import write_bytes, write_text


def read_sentencepiece(path: Path) -> Any:
    """Open a SentencePiece model by the library of that name.

    Args:
        path: The model's file.

    Raises:
        TokenizerError: If the library is not installed.
        CorruptCheckpointError: If the file is damaged.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise TokenizerError(
            f"{path} needs the sentencepiece package; run `pip install sentencepiece`, "
            "or put a tokenizer.json beside it"
        ) from error
    data = path.read_bytes()
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
    except Exception as error:  # RuntimeError or TypeError, depending on the byte
        raise CorruptCheckpointError(f"{path} is not a SentencePiece model; download it again") from error
    if model is None or model.get_piece_size() == 0:
        raise CorruptCheckpointError(f"{path} is not a SentencePiece model: it has no pieces; download it again")
    return model


def _same(text: str) -> str:
    return text


@dataclass(frozen=True)
class SentencePieceBackend:
    """A SentencePiece model, with what a checkpoint's own class does around it.

    Attributes:
        model: The `sentencepiece.SentencePieceProcessor`.
        path: Its file.
        special: Ids of the tokens that are recognised in a text, and left out of a decoded one.
        suffix: Ids that stand after a text.
        offset: What is added to a piece's number to get its id.
        before: Applied to a text before it is cut into pieces.
        after: Applied to a text put together from pieces; undoes `before`.
        config: What `tokenizer_config.json` must say for the file to be read this way again.
    """

    model: Any
    path: Path
    special: Mapping[str, int]
    suffix: Sequence[int] = ()
    offset: int = 0
    before: Callable[[str], str] = _same
    after: Callable[[str], str] = _same
    config: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.special))})", text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += [piece + self.offset for piece in self.model.encode(self.before(part))]
        return [*ids, *self.suffix] if add_special_tokens else ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return the text of ids; those of no piece have none."""
        skipped = self.special_ids() if skip_special_tokens else set()
        pieces = [i - self.offset for i in ids if i not in skipped and self.id_to_token(i) is not None]
        return self.after(self.model.decode(pieces))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        piece = self.model.piece_to_id(token)
        return None if self.model.is_unknown(piece) and self.model.id_to_piece(piece) != token else piece + self.offset

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None."""
        piece = token_id - self.offset
        return self.model.id_to_piece(piece) if 0 <= piece < self.model.get_piece_size() else None

    def bytes_of(self) -> None:
        """Return None: a piece's leading space is dropped where it begins a text."""

    def special_ids(self) -> set[int]:
        """Return the ids that `skip_special_tokens` leaves out."""
        return set(self.special.values())

    def size(self) -> int:
        """Return the number of ids."""
        return self.offset + self.model.get_piece_size()

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the model's file and `tokenizer_config.json`; `AutoTokenizer` needs the checkpoint's class as well."""
        write_bytes(folder / self.path.name, self.model.serialized_model_proto())
        content = json.dumps({**config, **self.config}, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / "tokenizer_config.json", content)
