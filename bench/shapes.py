# SPDX-License-Identifier: Apache-2.0
"""Shapes of well-known models: their `config.json` and the tensors of their Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tensors = dict[str, tuple[int, ...]]


def _llama_config(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, **rest: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **rest,
    }


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    # TinyLlama-1.1B
    "llama-1.1b": _llama_config(
        2048,
        5632,
        22,
        32,
        4,
        vocab_size=32000,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "smollm2-135m": _llama_config(
        576,
        1536,
        30,
        9,
        3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
    "gpt2-124m": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "n_inner": None,
        "vocab_size": 50257,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
}


def tensors_of(config: Mapping[str, Any]) -> Tensors:
    """Names and shapes of a checkpoint's tensors, in the order of the layers."""
    return {"llama": _llama, "gpt2": _gpt2}[config["model_type"]](config)


def _llama(config: Mapping[str, Any]) -> Tensors:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    tensors: Tensors = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        block = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        tensors |= {f"model.layers.{index}.{name}.weight": shape for name, shape in block.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (vocab, hidden)
    return tensors


def _gpt2(config: Mapping[str, Any]) -> Tensors:
    hidden = config["n_embd"]
    tensors: Tensors = {
        "transformer.wte.weight": (config["vocab_size"], hidden),
        "transformer.wpe.weight": (config["n_positions"], hidden),
    }
    for index in range(config["n_layer"]):
        for name, shape in {  # Conv1D weights are stored [input, output]
            "ln_1": (hidden,),
            "attn.c_attn": (hidden, 3 * hidden),
            "attn.c_proj": (hidden, hidden),
            "ln_2": (hidden,),
            "mlp.c_fc": (hidden, 4 * hidden),
            "mlp.c_proj": (4 * hidden, hidden),
        }.items():
            tensors[f"transformer.h.{index}.{name}.weight"] = shape
            tensors[f"transformer.h.{index}.{name}.bias"] = shape[-1:]
    for kind in ("weight", "bias"):
        tensors[f"transformer.ln_f.{kind}"] = (hidden,)
    return tensors
