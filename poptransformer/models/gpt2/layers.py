# SPDX-License-Identifier: Apache-2.0
"""Layers of GPT-2; names and layouts are those of its checkpoint (transformers GPT2Model)."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.checkpoint import HFConfig
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers import MLP, Attention, BaseLayer, Conv1D, Embedding, LayerNorm
from poptransformer.parallel import FusedQKV
from poptransformer.step import Step


class GPT2Attention(Attention):
    """Multi-head attention with one projection for queries, keys and values (transformers GPT2Attention)."""

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        hidden_size, num_heads = config.n_embd, config.n_head
        if hidden_size % num_heads:
            raise ConfigError(
                f"n_embd {hidden_size} must be a multiple of n_head {num_heads}; check the checkpoint's config.json."
            )
        head_dim = hidden_size // num_heads
        scale = head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx", False):
            scale /= layer_index + 1
        super().__init__(context, name, layer_index, num_heads, num_heads, head_dim, scale)
        heads = FusedQKV(num_heads, head_dim)
        self.c_attn = Conv1D(self.context, "c_attn", hidden_size, 3 * hidden_size, strategy=heads)
        self.c_proj = Conv1D(self.context, "c_proj", hidden_size, hidden_size, strategy="end")

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            sizes = [self.num_heads * self.head_dim] * 3
            query, key, value = ops.split(graph, self.c_attn(graph, x), sizes)
            return self.c_proj(graph, self.attend(graph, step, query, key, value))


class GPT2Block(BaseLayer):
    """Pre-norm decoder block (transformers GPT2Block)."""

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        super().__init__(context, name)
        hidden_size, eps = config.n_embd, config.get("layer_norm_epsilon", 1e-5)
        inner_size = config.get("n_inner") or 4 * hidden_size
        self.ln_1 = LayerNorm(self.context, "ln_1", hidden_size, eps)
        self.attn = GPT2Attention(self.context, "attn", layer_index, config)
        self.ln_2 = LayerNorm(self.context, "ln_2", hidden_size, eps)
        self.mlp = MLP(self.context, "mlp", hidden_size, inner_size, config.get("activation_function", "gelu_new"))

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            x = ops.add(graph, x, self.attn(graph, self.ln_1(graph, x), step))
            return ops.add(graph, x, self.mlp(graph, self.ln_2(graph, x)))


class GPT2Transformer(BaseLayer):
    """Embeddings, blocks and final norm (transformers GPT2Model)."""

    def __init__(self, context: str | None, name: str, config: HFConfig) -> None:
        super().__init__(context, name)
        hidden_size = config.n_embd
        self.wte = Embedding(self.context, "wte", config.vocab_size, hidden_size, "vocabulary")
        self.wpe = Embedding(self.context, "wpe", config.n_positions, hidden_size)
        self.blocks = [GPT2Block(self.context, f"h.{i}", i, config) for i in range(config.n_layer)]
        self.ln_f = LayerNorm(self.context, "ln_f", hidden_size, config.get("layer_norm_epsilon", 1e-5))

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns hidden states `[B, M, D]` of the tokens that get logits."""
        with graph.nameScope(self.context):
            x = ops.add(graph, self.wte(graph, step.input_ids), self.wpe(graph, step.position_ids))
            for index, block in enumerate(self.blocks):
                with self.block_scope(graph, index):
                    x = block(graph, x, step)
            return self.ln_f(graph, step.chosen(x))
