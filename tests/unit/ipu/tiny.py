# SPDX-License-Identifier: Apache-2.0
"""Configurations of small models."""

from __future__ import annotations

from typing import Any

from poptransformer.checkpoint import HFConfig

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 320,
    "n_embd": 96,
    "n_layer": 6,
    "n_head": 6,
    "n_positions": 128,
    "torch_dtype": "float32",
}


def config(raw: dict[str, Any], **changes: Any) -> HFConfig:
    return HFConfig({**raw, **changes})
