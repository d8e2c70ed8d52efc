# SPDX-License-Identifier: Apache-2.0
"""BERT's word pieces from a vocabulary file."""

from __future__ import annotations

from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from poptransformer.errors import ConfigError

CLS, SEP, MASK, UNK = "[CLS]", "[SEP]", "[MASK]", "[UNK]"
CONTINUES = "##"  # begins a piece that continues a word


class WordPieces:
    """Text to word pieces, and those to ids.

    Args:
        vocab_file: a piece a line; its id is the number of the line, from 0.
        do_lower_case: lower case and without accents, for uncased vocabularies.

    Raises:
        ConfigError: the file is missing, no vocabulary, or lacks one of BERT's special pieces.
    """

    def __init__(self, vocab_file: Path | str, do_lower_case: bool = False) -> None:
        self.path = Path(vocab_file)
        try:
            self.pieces = self.path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise ConfigError(
                f"Cannot read the vocabulary {self.path}: {error.strerror}. Check --vocab_file."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"The vocabulary {self.path} is not UTF-8 text. Check --vocab_file.") from error
        while self.pieces and not self.pieces[-1]:
            self.pieces.pop()
        self.pieces = [piece.rstrip("\r") for piece in self.pieces]
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        if len(self.ids) != len(self.pieces):
            twice = next(piece for index, piece in enumerate(self.pieces) if self.ids[piece] != index)
            raise ConfigError(f"The vocabulary {self.path} holds {twice!r} more than once. Check --vocab_file.")
        for piece in (CLS, SEP, MASK, UNK):
            self.require(piece)
        self.pad_id = self.ids.get("[PAD]", 0)
        self._tokenizer = BertWordPieceTokenizer(vocab=dict(self.ids), lowercase=do_lower_case)

    def require(self, piece: str) -> None:
        """Raises unless the vocabulary holds a piece."""
        if piece not in self.ids:
            raise ConfigError(f"The vocabulary {self.path} has no {piece}; expected BERT's, a piece a line.")

    def split(self, text: str) -> list[str]:
        """Returns the word pieces of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).tokens
