# SPDX-License-Identifier: Apache-2.0
"""Layers of Llama 2 and 3; names and layouts are those of their checkpoints (transformers LlamaModel)."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.checkpoint import HFConfig
from poptransformer.graph import Graph
from poptransformer.layers import (
    Attention,
    BaseLayer,
    Embedding,
    GatedMLP,
    Linear,
    RMSLayerNorm,
    RotaryEmbedding,
)
from poptransformer.parallel import Heads
from poptransformer.step import Step


def head_dim_of(config: HFConfig) -> int:
    """Columns of one head; configs may set it apart from hidden size and heads."""
    return config.get("head_dim") or config.hidden_size // config.num_attention_heads


class LlamaAttention(Attention):
    """Rotary attention with grouped keys and values (transformers LlamaAttention)."""

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig, rotary: RotaryEmbedding) -> None:
        num_heads, head_dim = config.num_attention_heads, head_dim_of(config)
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        super().__init__(context, name, layer_index, num_heads, num_kv_heads, head_dim)
        hidden_size, use_bias = config.hidden_size, config.get("attention_bias", False)
        self.rotary = rotary
        queries, keys = Heads(head_dim, num_heads), Heads(head_dim, num_kv_heads)
        self.q_proj = Linear(self.context, "q_proj", hidden_size, num_heads * head_dim, use_bias, queries)
        self.k_proj = Linear(self.context, "k_proj", hidden_size, num_kv_heads * head_dim, use_bias, keys)
        self.v_proj = Linear(self.context, "v_proj", hidden_size, num_kv_heads * head_dim, use_bias, keys)
        self.o_proj = Linear(self.context, "o_proj", num_heads * head_dim, hidden_size, use_bias, "end")

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            query = self.rotate(graph, self.q_proj(graph, x), step, self.rotary, self.num_heads)
            key = self.rotate(graph, self.k_proj(graph, x), step, self.rotary, self.num_kv_heads)
            attended = self.attend(graph, step, query, key, self.v_proj(graph, x))
            return self.o_proj(graph, attended)


class LlamaBlock(BaseLayer):
    """Pre-norm decoder block (transformers LlamaDecoderLayer)."""

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig, rotary: RotaryEmbedding) -> None:
        super().__init__(context, name)
        hidden_size, eps = config.hidden_size, config.get("rms_norm_eps", 1e-6)
        self.input_layernorm = RMSLayerNorm(self.context, "input_layernorm", hidden_size, eps)
        self.self_attn = LlamaAttention(self.context, "self_attn", layer_index, config, rotary)
        self.post_attention_layernorm = RMSLayerNorm(self.context, "post_attention_layernorm", hidden_size, eps)
        self.mlp = GatedMLP(
            self.context,
            "mlp",
            hidden_size,
            config.intermediate_size,
            config.get("hidden_act", "silu"),
            config.get("mlp_bias", False),
        )

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            x = ops.add(graph, x, self.self_attn(graph, self.input_layernorm(graph, x), step))
            return ops.add(graph, x, self.mlp(graph, self.post_attention_layernorm(graph, x)))


class LlamaTransformer(BaseLayer):
    """Embedding, blocks and final norm (transformers LlamaModel)."""

    def __init__(self, context: str | None, name: str, config: HFConfig) -> None:
        super().__init__(context, name)
        hidden_size = config.hidden_size
        max_positions = config.get("max_position_embeddings", 2048)
        self.embed_tokens = Embedding(self.context, "embed_tokens", config.vocab_size, hidden_size, "vocabulary")
        self.rotary_emb = RotaryEmbedding(self.context, "rotary_emb", head_dim_of(config), config.rope(), max_positions)
        self.layers = [
            LlamaBlock(self.context, f"layers.{i}", i, config, self.rotary_emb) for i in range(config.num_hidden_layers)
        ]
        self.norm = RMSLayerNorm(self.context, "norm", hidden_size, config.get("rms_norm_eps", 1e-6))

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns hidden states `[B, M, D]` of the tokens that get logits."""
        with graph.nameScope(self.context):
            x = self.embed_tokens(graph, step.input_ids)
            for index, block in enumerate(self.layers):
                with self.block_scope(graph, index):
                    x = block(graph, x, step)
            return self.norm(graph, step.chosen(x))
