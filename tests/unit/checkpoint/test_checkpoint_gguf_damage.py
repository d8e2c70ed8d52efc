# SPDX-License-Identifier: Apache-2.0
"""GGUF files that are not supported, contradict themselves, or are damaged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import LLAMA_METADATA, llama_weights, to_gguf, write_gguf

from poptransformer.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    open_checkpoint,
)
from poptransformer.checkpoint.gguf_file import read_gguf

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"llama.expert_count": 8}, {}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "scales its rotary embedding by 'yarn'"),
        ({"llama.rope.dimension_count": 8}, {}, "rotates 8 of 16 dimensions"),
        ({"llama.attention.head_count_kv": [2, 1]}, {}, "one llama.attention.head_count_kv per layer"),
        (
            {},
            {"blk.0.attn_q_norm.weight": (np.ones(16, np.float32), "F32")},
            "'blk.0.attn_q_norm.weight', which a llama",
        ),
    ],
)
def test_what_is_not_supported(tmp_path: Path, metadata: dict, tensors: dict, message: str) -> None:
    stored = {**to_gguf(llama_weights()), **tensors}
    with pytest.raises(UnsupportedCheckpointError, match=message):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", stored, {**LLAMA_METADATA, **metadata}))


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {}, "mamba")
    with pytest.raises(UnsupportedCheckpointError, match="architecture 'mamba'; supported: gpt2, llama"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.embedding_length": None}, "lacks the metadata llama.embedding_length"),
        ({"llama.attention.head_count": 0}, "expected a number above 0"),
        ({"llama.block_count": "two"}, "expected a number above 0"),
        (
            {"llama.attention.head_count": 3, "llama.rope.dimension_count": None},
            "3 heads for 64 hidden units",
        ),
        ({"general.alignment": 24}, "not a power of two"),
    ],
)
def test_metadata_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    metadata = {key: value for key, value in {**LLAMA_METADATA, **changes}.items() if value is not None}
    path = write_gguf(tmp_path / "m.gguf", to_gguf(llama_weights()), metadata)
    with pytest.raises(CorruptCheckpointError, match=message):
        open_checkpoint(path)


def test_truncation_anywhere_names_file_and_size(tmp_path: Path) -> None:
    good = write_gguf(tmp_path / "m.gguf", to_gguf(llama_weights()), LLAMA_METADATA)
    content = good.read_bytes()
    header = read_gguf(good).header_bytes
    path = tmp_path / "cut.gguf"
    for size in (0, 3, 7, 12, 30, header // 2, header - 40, header + 10, len(content) - 40):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError, match=str(path)) as caught:
            open_checkpoint(path)
        assert "empty" in str(caught.value) or str(size) in str(caught.value)


def test_foreign_and_future_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"ELF\0" + b"\0" * 64)
    with pytest.raises(CorruptCheckpointError, match="begins with b'ELF"):
        open_checkpoint(path)
    path.write_bytes(b"GGUF\x63\0\0\0" + b"\0" * 64)
    with pytest.raises(UnsupportedCheckpointError, match="GGUF version 99"):
        open_checkpoint(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
    }
    good = write_gguf(tmp_path / "m.gguf", to_gguf(llama_weights(), "Q8_0"), {**LLAMA_METADATA, **vocabulary})
    content, header = good.read_bytes(), read_gguf(good).header_bytes
    rng = random.Random(0)
    path = tmp_path / "bad.gguf"
    opened = 0
    for _ in range(400):
        bad = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            checkpoint = open_checkpoint(path)
            with np.errstate(all="ignore"):
                for key in checkpoint.state_dict:
                    checkpoint.state_dict[key]
            if checkpoint.has_tokenizer:
                checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("ab a"))
        except CheckpointError:
            continue
        opened += 1
    assert 0 < opened < 400
