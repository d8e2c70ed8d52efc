# SPDX-License-Identifier: Apache-2.0
"""Layers of ChatGLM-6B; names and layouts are those of its checkpoint."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.checkpoint import HFConfig, reordered_rows
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers import Attention, BaseLayer, Embedding, LayerNorm, Linear
from poptransformer.layers.mlp import activation
from poptransformer.models.chatglm.prompt import HalfPrecisionRotary, MarkIds, Prompt, read_prompt
from poptransformer.parallel import FusedQKV
from poptransformer.step import Step

# sqrt(2 * layers) of the 6B model. The original's blocks never learn how many layers there are: they assume 28.
ALPHA = math.sqrt(2 * 28)


def head_dim_of(config: HFConfig) -> int:
    """Columns of one head."""
    hidden_size, num_heads = config.hidden_size, config.num_attention_heads
    if hidden_size % (4 * num_heads):
        raise ConfigError(
            f"hidden_size {hidden_size} must be a multiple of 4 times the {num_heads} attention heads, as each half of "
            "a head is rotated in pairs; check the checkpoint's config.json."
        )
    return hidden_size // num_heads


class QueryKeyValue(Linear):
    """One projection for queries, keys and values.

    The checkpoint's rows lie head by head: query, key, value. A head's first half is rotated by the position, its
    second by the block position, and in each half a column's partner is half of the half further on. Here all queries
    come first, then all keys, then all values; and the columns of a query or key head are in the order that makes the
    two rotations one of the whole head, whose angles are those of both, side by side. Scores do not change, as queries
    and keys have the same order.
    """

    def __init__(self, context: str, name: str, hidden_size: int, num_heads: int, head_dim: int) -> None:
        strategy = FusedQKV(num_heads, head_dim)
        super().__init__(context, name, hidden_size, 3 * num_heads * head_dim, strategy=strategy)
        rows = np.arange(self.output_size).reshape(num_heads, 3, head_dim)
        # head, query or key, which position, half of the half, column
        halves = rows[:, :2].reshape(num_heads, 2, 2, 2, head_dim // 4).swapaxes(2, 3)
        self.order = np.concatenate([halves[:, 0].ravel(), halves[:, 1].ravel(), rows[:, 2].ravel()])

    def load_weight(self) -> np.ndarray:
        weight = self.get_param_from_state_dict(self.key("weight"), [self.output_size, self.input_size])
        return reordered_rows(weight, self.order).T

    def load_bias(self) -> np.ndarray:
        return np.asarray(super().load_bias())[self.order]


class ChatGLMAttention(Attention):
    """Attention that sees the context both ways.

    The original divides the scores of layer i by i + 1 before it masks them and multiplies them again after, to keep
    them in the range of fp16. In fp32 neither is needed.
    """

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        hidden_size, num_heads, head_dim = config.hidden_size, config.num_attention_heads, head_dim_of(config)
        super().__init__(context, name, layer_index, num_heads, num_heads, head_dim)
        self.query_key_value = QueryKeyValue(self.context, "query_key_value", hidden_size, num_heads, head_dim)
        self.dense = Linear(self.context, "dense", hidden_size, hidden_size, strategy="end")

    def __call__(self, graph: Graph, x: ir.Value, step: Step, prompt: Prompt) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            size = self.num_heads * self.head_dim
            query, key, value = ops.split(graph, self.query_key_value(graph, x), [size] * 3)
            query, key = (
                ops.rotary_embedding(graph, part, prompt.cos, prompt.sin, self.num_heads, self.head_dim)
                for part in (query, key)
            )
            return self.dense(graph, self.attend(graph, step, query, key, value, prompt.lengths))


class ChatGLMMLP(BaseLayer):
    """Feed-forward block."""

    def __init__(self, context: str, name: str, config: HFConfig) -> None:
        super().__init__(context, name)
        hidden_size = config.hidden_size
        inner_size = config.get("inner_hidden_size") or 4 * hidden_size
        self.act_fn = activation("gelu_new")
        self.dense_h_to_4h = Linear(self.context, "dense_h_to_4h", hidden_size, inner_size, strategy="start")
        self.dense_4h_to_h = Linear(self.context, "dense_4h_to_h", inner_size, hidden_size, strategy="end")

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            return self.dense_4h_to_h(graph, self.act_fn(graph, self.dense_h_to_4h(graph, x)))


class ChatGLMBlock(BaseLayer):
    """Decoder block; what goes around a part of it is the part's normed input, times alpha."""

    def __init__(self, context: str, name: str, layer_index: int, config: HFConfig) -> None:
        super().__init__(context, name)
        hidden_size, eps = config.hidden_size, config.get("layernorm_epsilon", 1e-5)
        self.input_layernorm = LayerNorm(self.context, "input_layernorm", hidden_size, eps)
        self.attention = ChatGLMAttention(self.context, "attention", layer_index, config)
        self.post_attention_layernorm = LayerNorm(self.context, "post_attention_layernorm", hidden_size, eps)
        self.mlp = ChatGLMMLP(self.context, "mlp", config)

    def __call__(self, graph: Graph, x: ir.Value, step: Step, prompt: Prompt) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            x = self.input_layernorm(graph, x)
            x = ops.add(graph, ops.mul(graph, x, ALPHA), self.attention(graph, x, step, prompt))
            x = self.post_attention_layernorm(graph, x)
            return ops.add(graph, ops.mul(graph, x, ALPHA), self.mlp(graph, x))


class ChatGLMTransformer(BaseLayer):
    """Embedding, blocks and final norm."""

    def __init__(self, context: str | None, name: str, config: HFConfig, num_layers: int) -> None:
        super().__init__(context, name)
        hidden_size = config.hidden_size
        self.marks = MarkIds.of(config)
        self.word_embeddings = Embedding(self.context, "word_embeddings", config.vocab_size, hidden_size, "vocabulary")
        max_positions = config.get("max_sequence_length", 2048)
        self.rotary_emb = HalfPrecisionRotary(self.context, "rotary_emb", head_dim_of(config) // 2, max_positions)
        self.layers = [ChatGLMBlock(self.context, f"layers.{i}", i, config) for i in range(num_layers)]
        eps = config.get("layernorm_epsilon", 1e-5)
        self.final_layernorm = LayerNorm(self.context, "final_layernorm", hidden_size, eps)

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns hidden states `[B, M, D]` of the tokens that get logits."""
        with graph.nameScope(self.context):
            prompt = read_prompt(graph, step, self.marks, self.rotary_emb)
            x = self.word_embeddings(graph, step.input_ids)
            for index, block in enumerate(self.layers):
                with self.block_scope(graph, index):
                    x = block(graph, x, step, prompt)
            return self.final_layernorm(graph, step.chosen(x))
