# SPDX-License-Identifier: Apache-2.0
"""Layers of ChatGLM2, named as in its checkpoints (https://huggingface.co/THUDM/chatglm2-6b; transformers Glm)."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers import (
    Attention,
    BaseLayer,
    Embedding,
    LayerNorm,
    Linear,
    LMHead,
    RMSLayerNorm,
    RotaryEmbedding,
)
from poptransformer.layers.mlp import activation
from poptransformer.models.chatglm2.settings import Settings
from poptransformer.parallel import FusedStart, Heads, MultiQueryQKV, local_heads
from poptransformer.step import Step


class QueryKeyValue(BaseLayer):
    """Queries, keys and values by one matrix, or by three where the checkpoint holds them apart (transformers Glm).

    The rows of the one matrix are all queries, then all keys, then all values; without groups those of a head lie
    together, as `multi_query_attention: false` means.
    """

    def __init__(self, context: str, name: str, settings: Settings) -> None:
        super().__init__(context, name)
        num_heads, num_groups, head_dim = settings.num_heads, settings.num_groups, settings.head_dim
        own_heads, own_groups = local_heads(self.build, self.context, num_heads, num_groups)
        self.sizes = [own_heads * head_dim, own_groups * head_dim, own_groups * head_dim]
        self.heads = own_heads if settings.by_head else None
        layers: dict[str, Heads]
        if not self.has_param(self.key("weight")):
            counts = {"query": num_heads, "key": num_groups, "value": num_groups}
            layers = {self.key(part): Heads(head_dim, count) for part, count in counts.items()}
        elif settings.by_head:
            layers = {self.context: Heads(3 * head_dim, num_heads)}
        else:
            layers = {self.context: MultiQueryQKV(num_heads, num_groups, head_dim)}
        self.projections = [
            Linear(None, context, settings.hidden_size, heads.size, settings.qkv_bias, heads)
            for context, heads in layers.items()
        ]

    def __call__(self, graph: Graph, x: ir.Value) -> list[ir.Value]:
        """Maps `[B, L, D]` to `[B, L, N*H]` and twice `[B, L, K*H]`, of the replica's heads."""
        outputs = [projection(graph, x) for projection in self.projections]
        if len(outputs) == len(self.sizes):
            return outputs
        with graph.nameScope(self.context):
            if self.heads is None:
                return ops.split(graph, outputs[0], self.sizes)
            head_dim = self.sizes[0] // self.heads
            by_head = ops.reshape(graph, outputs[0], [0, 0, self.heads, 3 * head_dim])
            parts = ops.split(graph, by_head, [head_dim] * 3)
            return [ops.reshape(graph, part, [0, 0, self.sizes[0]]) for part in parts]


class ChatGLM2Attention(Attention):
    """Attention in groups of query heads, with rotary positions on a part of each head."""

    def __init__(self, context: str, name: str, layer_index: int, settings: Settings, rotary: RotaryEmbedding) -> None:
        super().__init__(context, name, layer_index, settings.num_heads, settings.num_groups, settings.head_dim)
        self.rotary = rotary
        self.query_key_value = QueryKeyValue(self.context, "query_key_value", settings)
        inner_size = settings.num_heads * settings.head_dim
        self.dense = Linear(self.context, "dense", inner_size, settings.hidden_size, settings.dense_bias, "end")

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            query, key, value = self.query_key_value(graph, x)
            query = self.rotate(graph, query, step, self.rotary, self.num_heads)
            key = self.rotate(graph, key, step, self.rotary, self.num_kv_heads)
            return self.dense(graph, self.attend(graph, step, query, key, value))


class ChatGLM2MLP(BaseLayer):
    """Feed-forward block whose first matrix holds the gate's rows, then those that the gate multiplies."""

    def __init__(self, context: str, name: str, settings: Settings) -> None:
        super().__init__(context, name)
        halves = FusedStart(2)
        self.inner_size = halves.outputs(self.build, 2 * settings.inner_size).size // 2
        self.act_fn = activation(settings.activation)
        hidden_size, use_bias = settings.hidden_size, settings.mlp_bias
        sizes = hidden_size, settings.inner_size
        self.dense_h_to_4h = Linear(self.context, "dense_h_to_4h", sizes[0], 2 * sizes[1], use_bias, halves)
        self.dense_4h_to_h = Linear(self.context, "dense_4h_to_h", *sizes[::-1], use_bias, "end")

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            gate, up = ops.split(graph, self.dense_h_to_4h(graph, x), [self.inner_size] * 2)
            return self.dense_4h_to_h(graph, ops.mul(graph, self.act_fn(graph, gate), up))


def norm(context: str, name: str, settings: Settings) -> RMSLayerNorm | LayerNorm:
    """Makes a norm of the kind that the config asks for."""
    return (RMSLayerNorm if settings.is_rms else LayerNorm)(context, name, settings.hidden_size, settings.eps)


class ChatGLM2Block(BaseLayer):
    """Pre-norm decoder block."""

    def __init__(self, context: str, name: str, layer_index: int, settings: Settings, rotary: RotaryEmbedding) -> None:
        super().__init__(context, name)
        self.residual_after_norm = settings.residual_after_norm
        self.input_layernorm = norm(self.context, "input_layernorm", settings)
        self.self_attention = ChatGLM2Attention(self.context, "self_attention", layer_index, settings, rotary)
        self.post_attention_layernorm = norm(self.context, "post_attention_layernorm", settings)
        self.mlp = ChatGLM2MLP(self.context, "mlp", settings)

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to the same shape."""
        with graph.nameScope(self.context):
            normed = self.input_layernorm(graph, x)
            residual = normed if self.residual_after_norm else x
            x = ops.add(graph, residual, self.self_attention(graph, normed, step))
            normed = self.post_attention_layernorm(graph, x)
            residual = normed if self.residual_after_norm else x
            return ops.add(graph, residual, self.mlp(graph, normed))


class ChatGLM2Embedding(BaseLayer):
    """The level that checkpoints put around the token table."""

    def __init__(self, context: str, name: str, settings: Settings) -> None:
        super().__init__(context, name)
        sizes = settings.vocab_size, settings.hidden_size
        self.word_embeddings = Embedding(self.context, "word_embeddings", *sizes, "vocabulary")

    def __call__(self, graph: Graph, input_ids: ir.Value) -> ir.Value:
        """Maps ids `[B, L]` to `[B, L, D]`."""
        return self.word_embeddings(graph, input_ids)


class ChatGLM2Encoder(BaseLayer):
    """Blocks and final norm."""

    def __init__(self, context: str, name: str, settings: Settings, rotary: RotaryEmbedding) -> None:
        super().__init__(context, name)
        self.layers = [
            ChatGLM2Block(self.context, f"layers.{index}", index, settings, rotary)
            for index in range(settings.num_layers)
        ]
        self.final_layernorm = norm(self.context, "final_layernorm", settings) if settings.has_final_norm else None

    def __call__(self, graph: Graph, x: ir.Value, step: Step) -> ir.Value:
        """Maps `[B, L, D]` to hidden states `[B, M, D]` of the tokens that get logits."""
        with graph.nameScope(self.context):
            for index, block in enumerate(self.layers):
                with self.block_scope(graph, index):
                    x = block(graph, x, step)
            chosen = step.chosen(x)
            return chosen if self.final_layernorm is None else self.final_layernorm(graph, chosen)


class ChatGLM2Transformer(BaseLayer):
    """Embedding, blocks, final norm and head (ChatGLMModel of the checkpoint's code, transformers GlmModel)."""

    def __init__(self, context: str | None, name: str, settings: Settings) -> None:
        super().__init__(context, name)
        self.embedding = ChatGLM2Embedding(self.context, "embedding", settings)
        self.rotary_pos_emb = RotaryEmbedding(
            self.context,
            "rotary_pos_emb",
            settings.rotary_dim,
            settings.rope,
            settings.max_positions,
            settings.interleaved,
        )
        self.encoder = ChatGLM2Encoder(self.context, "encoder", settings, self.rotary_pos_emb)
        tied = self.embedding.word_embeddings if settings.is_tied else None
        sizes = settings.vocab_size, settings.hidden_size
        self.output_layer = LMHead(self.context, "output_layer", *sizes, tie_weight=tied)

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns logits `[B, M, V]`."""
        with graph.nameScope(self.context):
            x = self.embedding(graph, step.input_ids)
            return self.output_layer(graph, self.encoder(graph, x, step))
