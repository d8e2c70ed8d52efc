# SPDX-License-Identifier: Apache-2.0
"""SentencePiece BPE models (`tokenizer.model`) as `tokenizers` objects, without the sentencepiece package.

The file is a protobuf message `ModelProto`: pieces with scores and types, and how text is normalized before
(`sentencepiece_model.proto` of https://github.com/google/sentencepiece).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.errors import TokenizerError
from poptransformer.checkpoint.gguf_tokenizer import merges_from_scores

_SPACE = "\u2581"  # SentencePiece's visible space
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # SentencePiece.Type
_MATCHED = (_NORMAL, _USER_DEFINED)
_BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece model.

    As in the package, text never becomes a control piece.

    Attributes:
        inner: A `tokenizers.Tokenizer` that gives its ids, and those of `parts`.
        pieces: Its pieces, by id.
        parts: What characters stand for that only longer pieces have, by the ids after all pieces.
        control_ids: Ids of control and unknown pieces, which stand for no text.
        bos_id: Id of the piece that begins a text, or None.
        eos_id: Id of the piece that ends a text, or None.
        unk_id: Id of what stands for unknown characters, or None.
    """

    inner: Any
    pieces: tuple[str, ...]
    parts: Mapping[int, tuple[int, ...]]
    control_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        found = self.inner.encode(text, add_special_tokens=False).ids
        if not self.parts:
            return found
        ids: list[int] = []
        for index in found:
            pieces = self.parts.get(index, (index,))
            if pieces != (self.unk_id,) or ids[-1:] != [self.unk_id]:  # unknown characters in a row are one
                ids += pieces
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self.inner.decode(list(ids))


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece model of the kind `bpe`.

    Args:
        path: The `.model` file.

    Raises:
        TokenizerError: If it is not such a file, or of another kind.
    """
    proto = _parse(path)
    kind, pieces = proto.trainer_spec.model_type, tuple(piece.piece for piece in proto.pieces)
    if kind != _BPE or not pieces:
        raise TokenizerError(
            f"{path} is a SentencePiece model of kind {kind} with {len(pieces)} pieces; expected kind {_BPE} (bpe) "
            "with a vocabulary. Put a tokenizer.json beside it"
        )
    if len(set(pieces)) != len(pieces):
        raise TokenizerError(f"{path} lists a piece twice; download it again")
    types = [piece.type for piece in proto.pieces]
    unk_id = types.index(_UNKNOWN) if _UNKNOWN in types else None
    try:
        parts = _parts(proto, unk_id)
        inner = _build(proto, [*pieces, *parts], unk_id)
    except Exception as error:  # the library raises bare Exception for every problem
        raise TokenizerError(f"the pieces of {path} do not fit together: {error}; download it again") from error

    def control(index: int) -> int | None:
        return index if 0 <= index < len(types) and types[index] == _CONTROL else None

    return SentencePieceModel(
        inner,
        pieces,
        dict(enumerate(parts.values(), len(pieces))),
        frozenset(index for index, kind in enumerate(types) if kind in (_CONTROL, _UNKNOWN)),
        control(proto.trainer_spec.bos_id),
        control(proto.trainer_spec.eos_id),
        unk_id,
    )


def _parse(path: Path) -> Any:
    # The message's description and nothing else: no tokenizer, no torch.
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto  # type: ignore[attr-defined]

    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error}; download it again") from error
    except Exception as error:  # protobuf's DecodeError, whose place differs between its versions
        raise TokenizerError(f"{path} is not a SentencePiece model: {error}; download it again") from error
    return proto


def _parts(proto: Any, unk_id: int | None) -> dict[str, tuple[int, ...]]:
    """Find the characters that are no pieces, but could be joined to one; alone they are bytes, or unknown."""
    matched = [piece.piece for piece in proto.pieces if piece.type in _MATCHED]
    missing = sorted({*"".join(matched)} - {piece.piece for piece in proto.pieces})
    bytes_of = {int(piece.piece[3:5], 16): i for i, piece in enumerate(proto.pieces) if piece.type == _BYTE}
    if not bytes_of:
        return dict.fromkeys(missing, () if unk_id is None else (unk_id,))
    return {character: tuple(bytes_of[byte] for byte in character.encode()) for character in missing}


def _build(proto: Any, pieces: Sequence[str], unk_id: int | None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    matched = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type in _MATCHED}
    matched |= {piece: index for index, piece in enumerate(pieces) if index >= len(proto.pieces)}
    whole = sorted((piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED), key=len, reverse=True)
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges_from_scores(matched, [piece.score for piece in proto.pieces]),
        unk_token=None if unk_id is None else pieces[unk_id],
        fuse_unk=True,
        byte_fallback=any(piece.type == _BYTE for piece in proto.pieces),
        ignore_merges=bool(whole),
    )
    inner = Tokenizer(model)
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", _SPACE))
    # `Metaspace` would add no space before a text that begins with one; SentencePiece does.
    inner.normalizer = normalizers.Sequence([*steps, *([normalizers.Prepend(_SPACE)] if spec.add_dummy_prefix else [])])
    if whole:
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), behavior="isolated")
    joined = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else joined)
    return inner
