# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models written by hand."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.utils.sentencepiece_model_pb2_new import ModelProto

JOINED = ("so", "▁p", "hi", "lo", "▁phi", "phy", "op", "▁s", "ou", "nd", "ound", "▁[", "▁▁", "▁t", "你好", "[R")
CHARACTERS = "▁abcdefghilmnopqrstuwxyzRMASKg12[]<>/答"


def sentencepiece_model(
    *,
    bytes: bool = True,
    user_defined: Sequence[str] = (),
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    model_type: str = "BPE",
) -> bytes:
    """Return a `.model` file: `<unk>`, `<s>`, `</s>`, 256 bytes, user-defined pieces, joined ones, characters."""
    proto = ModelProto()
    kinds = proto.SentencePiece
    pieces = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)] if bytes else []
    pieces += [(piece, kinds.USER_DEFINED) for piece in user_defined]
    pieces += [(piece, kinds.NORMAL) for piece in (*JOINED, *dict.fromkeys(CHARACTERS))]
    for rank, (piece, kind) in enumerate(pieces):
        proto.pieces.add(piece=piece, score=-float(rank) if kind == kinds.NORMAL else 0.0, type=kind)
    proto.trainer_spec.model_type = getattr(proto.trainer_spec, model_type)
    proto.trainer_spec.byte_fallback = bytes
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = remove_extra_whitespaces
    return proto.SerializeToString(deterministic=True)
