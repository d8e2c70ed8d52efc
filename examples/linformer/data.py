# SPDX-License-Identifier: Apache-2.0
"""Batches for masked language modelling from the TFRecord files of `create_tfrecords_mlm_only.py`."""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from utils import DYNAMIC, PADS, STATIC

from poptransformer.data.examples import decode_example, decode_sequence_example
from poptransformer.data.mlm import Masking, static_features
from poptransformer.data.tfrecords import read_records
from poptransformer.data.word_pieces import WordPieces
from poptransformer.errors import ConfigError, PopTransformerError

STATIC_FEATURES = ("input_ids", "input_mask", "masked_lm_positions", "masked_lm_ids", "masked_lm_weights")


@dataclasses.dataclass(frozen=True)
class Row:
    """An example without its padding.

    Attributes:
        ids: int64 `[L]`, some of them masked.
        positions: int64 `[P]`, where to predict.
        labels: int64 `[P]`, what stood there.
        weights: float32 `[P]`.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class MaskedBatches:
    """Batches, in another order and with other masks in each epoch; an epoch depends on torch's generator alone.

    Rows of a batch are padded to the longest of them, and with `buckets` they are of similar length.

    Args:
        section: `train_input` or `eval_input`, complete.
        model: the section `model`, complete.
    """

    def __init__(self, section: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        self.section = {key: section[key] for key in section}
        self.words = self._words() if section["vocab_file"] is not None else None
        self.kind = section["data_processor"]
        self.masking = Masking(
            section["masked_lm_prob"], section["max_predictions_per_seq"], section["mask_whole_word"]
        )
        self.pads = tuple(model[key] for key in PADS) if model["use_vsl"] else None
        self.has_segments = model["use_segment_embedding"]
        self.files = sorted(Path(section["data_dir"]).glob("*.tfrecords"))
        if not self.files:
            raise ConfigError(
                f"{section['data_dir']} has no *.tfrecords. Write some with scripts/create_tfrecords_mlm_only.py, or "
                "correct data_dir."
            )

    def _words(self) -> WordPieces:
        words, size = WordPieces(self.section["vocab_file"], self.section["do_lower"]), self.section["vocab_size"]
        if len(words.pieces) != size:
            raise ConfigError(f"{words.path} has {len(words.pieces)} word pieces, but vocab_size is {size}.")
        return words

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields the batches of an epoch; every record is in one."""
        rng = random.Random(int(torch.randint(2**62, ())))
        files, size = list(self.files), self.section["batch_size"]
        if self.section["shuffle"]:
            rng.shuffle(files)
        records: Iterator[tuple[Path, bytes]] = ((path, record) for path in files for record in read_records(path))
        if self.section["shuffle"]:
            records = _shuffled(records, self.section["shuffle_buffer"] or 10 * size, rng)
        bounds = self.section["buckets"] or ()
        waiting: list[list[Row]] = [[] for _ in range(len(bounds) + 1)]
        for path, record in records:
            row = self._row(path, record, rng)
            bucket = waiting[bisect.bisect_left(bounds, len(row.ids))]
            bucket.append(row)
            if len(bucket) == size:
                yield self._batch(bucket)
                bucket.clear()
        for bucket in waiting:
            if bucket:
                yield self._batch(bucket)

    # ---- rows ---------------------------------------------------------------------------------------------------

    def _row(self, path: Path, record: bytes, rng: random.Random) -> Row:
        try:
            row = self._masked(record, rng) if self.kind == DYNAMIC else self._already_masked(record)
            self._check(row)
        except PopTransformerError as error:
            raise ConfigError(f"{path}: {error}") from error
        except (ValueError, TypeError, AttributeError) as error:  # a feature's values are of another type
            raise ConfigError(f"{path}: a record holds other values than {self.kind} reads. Write it again.") from error
        return row

    def _masked(self, record: bytes, rng: random.Random) -> Row:
        """Masks the pieces of a `SequenceExample` of `tokens`."""
        words: Any = self.words  # utils.py requires them
        found = decode_sequence_example(record).get("tokens")
        if not found:
            raise ConfigError(
                f"a record has no `tokens`. Write the files with --disable_masking, or set data_processor to {STATIC}."
            )
        tokens = [token.decode() for (token,) in found]
        unknown = next((token for token in tokens if token not in words.ids), None)
        if unknown is not None:
            raise ConfigError(f"{words.path} has no piece {unknown!r}. Use the vocabulary that wrote the files.")
        features = static_features(tokens, self.masking, words, len(tokens), rng)
        return self._unpadded(features)

    def _already_masked(self, record: bytes) -> Row:
        """Reads an `Example` of static masks."""
        features = decode_example(record)
        missing = [name for name in STATIC_FEATURES if name not in features]
        if missing:
            raise ConfigError(
                f"a record has no `{missing[0]}`. Write the files without --disable_masking, or set data_processor to "
                f"{DYNAMIC}."
            )
        for first, *others in (STATIC_FEATURES[:2], STATIC_FEATURES[2:]):
            if any(len(features[name]) != len(features[first]) for name in others):
                raise ConfigError(f"a record's {first} and {', '.join(others)} differ in length. Write it again.")
        return self._unpadded(features)

    @staticmethod
    def _unpadded(features: Mapping[str, list[Any]]) -> Row:
        mask = np.asarray(features["input_mask"], np.int64)
        length = int(mask.sum())
        if not mask[:length].all():
            raise ConfigError("a record's input_mask must be ones, then zeros. Write it again.")
        weights = np.asarray(features["masked_lm_weights"], np.float32)
        kept = weights > 0
        return Row(
            np.asarray(features["input_ids"], np.int64)[:length],
            np.asarray(features["masked_lm_positions"], np.int64)[kept],
            np.asarray(features["masked_lm_ids"], np.int64)[kept],
            weights[kept],
        )

    def _check(self, row: Row) -> None:
        size, longest, most = (
            self.section[key] for key in ("vocab_size", "max_sequence_length", "max_predictions_per_seq")
        )
        if not 1 <= len(row.ids) <= longest:
            raise ConfigError(f"a record has {len(row.ids)} pieces; expected 1 to max_sequence_length {longest}.")
        if len(row.positions) > most:
            raise ConfigError(f"a record has {len(row.positions)} masks, but max_predictions_per_seq is {most}.")
        for name, ids in (("input_ids", row.ids), ("masked_lm_ids", row.labels)):
            if len(ids) and not (ids.min() >= 0 and ids.max() < size):
                raise ConfigError(f"a record's {name} go from {ids.min()} to {ids.max()}, but vocab_size is {size}.")
        if len(row.positions) and not (row.positions.min() >= 0 and row.positions.max() < len(row.ids)):
            raise ConfigError(f"a record of {len(row.ids)} pieces has masks at {row.positions.tolist()}.")
        if self.pads and (row.ids == self.pads[0]).any():
            raise ConfigError(
                f"a record's text holds the id {self.pads[0]}, which train_input.input_pad_id makes padding. Leave it "
                f"out for {size + 1}."
            )

    # ---- batches ------------------------------------------------------------------------------------------------

    def _batch(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Pads rows to `input_ids`, `input_mask` `[B, L]` and `masked_lm_{positions,ids,weights}` `[B, P]`.

        With segments, `segment_ids` `[B, L]` are 0: there is one sentence.
        """
        pad_of_words = self.words.pad_id if self.words is not None else 0
        input_pad, segment_pad, mlm_pad = self.pads or (pad_of_words, 0, 0)
        weights = _padded([row.weights for row in rows], 0.0)
        if self.section["scale_mlm_weights"] and weights.sum() > 0:
            weights *= len(rows) / weights.sum()  # a batch's sum over its rows is then the mean over its masks
        batch = {
            "input_ids": _padded([row.ids for row in rows], input_pad),
            "input_mask": _padded([np.ones_like(row.ids) for row in rows], 0),
            "masked_lm_positions": _padded([row.positions for row in rows], mlm_pad),
            "masked_lm_ids": _padded([row.labels for row in rows], mlm_pad),
            "masked_lm_weights": weights,
        }
        if self.has_segments:
            batch["segment_ids"] = _padded([np.zeros_like(row.ids) for row in rows], segment_pad)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def _padded(rows: list[np.ndarray], pad: float) -> np.ndarray:
    """One array `[B, longest]`."""
    array = np.full((len(rows), max(map(len, rows))), pad, rows[0].dtype)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row
    return array


def _shuffled(items: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Yields the items, each drawn from `size` of them."""
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        index = rng.randrange(size)
        yield buffer[index]
        buffer[index] = item
    rng.shuffle(buffer)
    yield from buffer


def get_train_dataloader(params: dict[str, Any]) -> MaskedBatches:
    """Batches to train with."""
    return MaskedBatches(params["train_input"], params["model"])


def get_eval_dataloader(params: dict[str, Any]) -> MaskedBatches:
    """Batches to evaluate with."""
    return MaskedBatches(params["eval_input"], params["model"])
