# SPDX-License-Identifier: Apache-2.0
"""The names of transformers' GlmForCausalLM, and ChatGLM2's for the same tensors."""

from __future__ import annotations

import re

_OUTSIDE = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
}
_INSIDE = {
    "self_attn.q_proj": "self_attention.query_key_value.query",
    "self_attn.k_proj": "self_attention.query_key_value.key",
    "self_attn.v_proj": "self_attention.query_key_value.value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def from_glm(key: str) -> str:
    """Returns ChatGLM2's name of a tensor of GlmForCausalLM; queries, keys and values stay three matrices."""
    layer, _, kind = key.rpartition(".")
    block = _BLOCK.fullmatch(layer)
    if block is None:
        return f"{_OUTSIDE.get(layer, layer)}.{kind}"
    return f"transformer.encoder.layers.{block[1]}.{_INSIDE.get(block[2], block[2])}.{kind}"


def with_prefix(key: str) -> str | None:
    """Returns the name that a tensor of the bare ChatGLMModel has in the language model; None for buffers."""
    if key.endswith("rotary_pos_emb.inv_freq"):
        return None
    return key if key.startswith("transformer.") else f"transformer.{key}"
