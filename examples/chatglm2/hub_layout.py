# SPDX-License-Identifier: Apache-2.0
"""Writes transformers' GlmForCausalLM in the layout of THUDM/chatglm2-6b, which is the same function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GlmConfig, GlmForCausalLM

NAMES = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.layers": "transformer.encoder.layers",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
    "self_attn.q_proj": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "gate_up_proj": "dense_h_to_4h",
    "down_proj": "dense_4h_to_h",
}


def config_of(config: GlmConfig) -> dict[str, Any]:
    """Return `config.json` as THUDM/chatglm2-6b spells it."""
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": config.attention_bias,
        "apply_residual_connection_post_layernorm": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ffn_hidden_size": config.intermediate_size,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "original_rope": True,
        "pad_token_id": 0,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": config.max_position_embeddings,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }


def tensors_of(model: GlmForCausalLM) -> dict[str, torch.Tensor]:
    """Return the weights as THUDM/chatglm2-6b names them: queries, keys and values are rows of one matrix."""
    weights = model.state_dict()
    tensors = {}
    for name, tensor in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
        for old, new in NAMES.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    return tensors


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_tensors(
    folder: Path, tensors: Mapping[str, torch.Tensor], name: str = "model.safetensors", shards: int = 1
) -> None:
    """Write weights as one file, or as shards with an index; a name that ends in `.bin` means torch's format."""
    stem, suffix = name.rsplit(".", 1)
    files = [name] if shards == 1 else [f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}" for i in range(shards)]
    places = {key: files[index % shards] for index, key in enumerate(tensors)}
    for file in files:
        part = {key: tensor.contiguous() for key, tensor in tensors.items() if places[key] == file}
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if shards > 1:
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
