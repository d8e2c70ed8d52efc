# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of models with random weights: converters insist on one, though the benchmark hands over ids alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of pieces
BPE = 2


def write_llama(folder: Path, size: int) -> None:
    """Writes a tokenizer of `size` pieces that mean nothing, in the two forms that Llama's has: both are asked for."""
    pieces = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    pieces += [(f"<0x{value:02X}>", BYTE) for value in range(256)]
    pieces += [(f"\u2581w{number}", NORMAL) for number in range(len(pieces), size)]
    model = b"".join(_message(1, _piece(text, -float(i), kind)) for i, (text, kind) in enumerate(pieces))
    trainer = _number(3, BPE) + _number(4, size) + _number(35, 1)  # model_type, vocab_size, byte_fallback
    model += _message(2, trainer) + _message(3, _message(1, b"identity"))
    (folder / "tokenizer.model").write_bytes(model)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    special = [_added(number, text, special=True) for number, (text, _) in enumerate(pieces[:3])]
    vocabulary = {text: number for number, (text, _) in enumerate(pieces)}
    model_json = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocabulary, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": special, "model": model_json}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _added(number: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": special}


def widen(source: Path, folder: Path, size: int) -> None:
    """Copies a `tokenizer.json` and fills it up with meaningless tokens, as some converters want it of full size."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])}
    extra = range(max(ids) + 1, size)
    tokenizer["added_tokens"] += [_added(number, f"<extra_{number}>", special=False) for number in extra]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())


# ---- protocol buffers, as far as SentencePiece needs them ------------------------------------------------------------


def _piece(text: str, score: float, kind: int) -> bytes:
    return _message(1, text.encode()) + _key(2, 5) + struct.pack("<f", score) + _number(3, kind)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
