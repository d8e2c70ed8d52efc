# SPDX-License-Identifier: Apache-2.0
"""Masked language modelling: examples from documents, and which of their pieces are masked (BERT, arXiv 1810.04805)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence

from poptransformer.data.word_pieces import CLS, CONTINUES, MASK, SEP, WordPieces
from poptransformer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Windows:
    """How documents are cut into examples.

    Attributes:
        max_seq_length: pieces of an example, `[CLS]` and `[SEP]` included.
        overlap_size: pieces that an example has in common with the one before; None is a quarter of the length.
        short_seq_prob: share of examples that are shorter.
        min_short_seq_length: the fewest pieces of those; None is `overlap_size + 2`.
        separator: piece between documents, where an example may hold several; None keeps them apart.

    Raises:
        ConfigError: the numbers contradict each other.
    """

    max_seq_length: int = 128
    overlap_size: int | None = None
    short_seq_prob: float = 0.1
    min_short_seq_length: int | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.max_seq_length < 4:
            raise ConfigError(f"max_seq_length must be at least 4, found {self.max_seq_length}.")
        if not 0 <= self.overlap < self.max_seq_length - 2:
            raise ConfigError(f"overlap_size must be from 0 to {self.max_seq_length - 3}, found {self.overlap}.")
        if not 0 <= self.short_seq_prob <= 1:
            raise ConfigError(f"short_seq_prob must be from 0 to 1, found {self.short_seq_prob}.")
        least, most = self.overlap + 2, self.max_seq_length - 2
        if self.short_seq_prob and not least <= self.shortest <= most:
            raise ConfigError(
                f"min_short_seq_length must be from {least} to {most}, found {self.shortest}. Lower overlap_size or "
                "set short_seq_prob to 0."
            )

    @property
    def overlap(self) -> int:
        """Pieces that two examples have in common."""
        return self.max_seq_length // 4 if self.overlap_size is None else self.overlap_size

    @property
    def shortest(self) -> int:
        """The fewest pieces of a short example."""
        return self.overlap + 2 if self.min_short_seq_length is None else self.min_short_seq_length

    def examples(self, documents: Iterable[Sequence[str]], rng: random.Random) -> Iterator[list[str]]:
        """Yields examples, `[CLS]` pieces `[SEP]`; every piece of every document is in one."""
        left: list[str] = []
        for document in documents:
            pieces = [*left, self.separator, *document] if left and self.separator else list(document)
            start, size = 0, self._size(rng)
            while start + size <= len(pieces):
                yield [CLS, *pieces[start : start + size], SEP]
                start += size - self.overlap
                size = self._size(rng)
            left = pieces[start:]
            if start and len(left) <= self.overlap:
                left = []  # the last example has them all
            if self.separator is None and left:
                yield [CLS, *left, SEP]
                left = []
        if left:
            yield [CLS, *left, SEP]

    def _size(self, rng: random.Random) -> int:
        longest = self.max_seq_length - 2
        return rng.randint(self.shortest, longest) if rng.random() < self.short_seq_prob else longest


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which pieces of an example are predicted.

    Attributes:
        masked_lm_prob: share of the pieces.
        max_predictions_per_seq: the most of an example.
        mask_whole_word: all pieces of a word or none.
        never: pieces that are never masked.

    Raises:
        ConfigError: a number is out of range.
    """

    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int = 20
    mask_whole_word: bool = False
    never: frozenset[str] = frozenset((CLS, SEP))

    def __post_init__(self) -> None:
        if not 0 < self.masked_lm_prob <= 1:
            raise ConfigError(f"masked_lm_prob must be above 0 and at most 1, found {self.masked_lm_prob}.")
        if self.max_predictions_per_seq < 1:
            raise ConfigError(f"max_predictions_per_seq must be at least 1, found {self.max_predictions_per_seq}.")

    def mask(
        self, pieces: Sequence[str], vocabulary: Sequence[str], rng: random.Random
    ) -> tuple[list[str], list[int], list[str]]:
        """Returns the pieces with some replaced, the positions of those, and what stood there.

        Of the chosen pieces, 80% become `[MASK]`, 10% a random piece of the vocabulary, and 10% stay.
        """
        limit = min(self.max_predictions_per_seq, max(1, round(len(pieces) * self.masked_lm_prob)))
        words = self._words(pieces)
        rng.shuffle(words)
        chosen: list[int] = []
        for word in words:
            if len(chosen) + len(word) <= limit:
                chosen.extend(word)
        chosen.sort()
        masked = list(pieces)
        for position in chosen:
            if rng.random() < 0.8:
                masked[position] = MASK
            elif rng.random() < 0.5:
                masked[position] = vocabulary[rng.randrange(len(vocabulary))]
        return masked, chosen, [pieces[position] for position in chosen]

    def _words(self, pieces: Sequence[str]) -> list[list[int]]:
        """Positions of pieces that are chosen together."""
        words: list[list[int]] = []
        for position, piece in enumerate(pieces):
            if piece in self.never:
                continue
            continues = self.mask_whole_word and piece.startswith(CONTINUES) and words
            if continues and words[-1][-1] == position - 1:
                words[-1].append(position)
            else:
                words.append([position])
        return words


def static_features(
    example: Sequence[str], masking: Masking, words: WordPieces, max_seq_length: int, rng: random.Random
) -> dict[str, list[int] | list[float]]:
    """Returns a masked example, padded: `input_ids`, `input_mask` and `masked_lm_{positions,ids,weights}`."""
    masked, positions, labels = masking.mask(example, words.pieces, rng)
    unknown = words.ids["[UNK]"]
    ids = [words.ids.get(piece, unknown) for piece in masked]
    padding, free = max_seq_length - len(ids), masking.max_predictions_per_seq - len(positions)
    return {
        "input_ids": [*ids, *[words.pad_id] * padding],
        "input_mask": [*[1] * len(ids), *[0] * padding],
        "masked_lm_positions": [*positions, *[0] * free],
        "masked_lm_ids": [*(words.ids.get(piece, unknown) for piece in labels), *[0] * free],
        "masked_lm_weights": [*[1.0] * len(positions), *[0.0] * free],
    }
