# SPDX-License-Identifier: Apache-2.0
"""Transformer decoder of the layers API, as a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding_positions import RotaryPositionEmbeddingHelper, StepBias
from poptransformer.layers.feed_forward import FeedForwardNetwork
from poptransformer.layers.norm import LayerNorm
from poptransformer.layers.training_only import check_training_only
from poptransformer.layers.transformer_encoder import LayerFactory, attention_factory, last_layer, residual
from poptransformer.step import Step

PastKeyValue = tuple[ir.Value, ...]


class TransformerDecoderLayer(BaseLayer):
    """`poptransformer.nn.TransformerDecoderLayer` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        d_model: see `poptransformer.nn.TransformerDecoderLayer`, as for all that follow.
        nhead: N.
        dim_feedforward: columns inside of the feed-forward network.
        dropout: has no effect here.
        activation: name of the feed-forward network's activation.
        layer_norm_eps: added to variances.
        batch_first: must be true.
        norm_layer: called with context, name, size and eps, makes a norm.
        norm_first: norms before attention and feed-forward network, not after the sums.
        attention_module: see `TransformerEncoderLayer`.
        extra_attention_params: more arguments of the attention layers.
        add_cross_attention: attend to `memory`.
        attention_type: see `MultiheadAttention`.
        scale_qk_dot_by_d: of self-attention; see `MultiheadAttention`.
        scale_qk_dot_by_layer_idx: see `MultiheadAttention`.
        attention_inner_dim: columns of all heads together; None is D.
        cross_attention_kv_dim: columns of `memory`; None is D.
        use_projection_bias_in_attention: biases of the projections of queries, keys and values.
        use_ffn_bias_in_attention: bias of attention's output projection.
        use_ffn_bias: biases of the feed-forward network.
        **training_only: arguments that have no effect here.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "gelu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_layer: LayerFactory = LayerNorm,
        norm_first: bool = False,
        attention_module: str | LayerFactory = "aiayn_attention",
        extra_attention_params: Mapping[str, Any] | None = None,
        *,
        add_cross_attention: bool = True,
        attention_type: str = "scaled_dot_product",
        scale_qk_dot_by_d: bool = False,
        scale_qk_dot_by_layer_idx: bool = False,
        attention_inner_dim: int | None = None,
        cross_attention_kv_dim: int | None = None,
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        **training_only: object,
    ) -> None:
        super().__init__(context, name)
        check_training_only(type(self).__name__, training_only)
        self.norm_first = norm_first
        self.add_cross_attention = add_cross_attention

        def attention(part: str, **more: Any) -> Any:
            arguments = {
                "inner_dim": attention_inner_dim,
                "batch_first": batch_first,
                "attention_type": attention_type,
                "use_projection_bias": use_projection_bias_in_attention,
                "use_ffn_bias": use_ffn_bias_in_attention,
                "scale_qk_dot_by_layer_idx": scale_qk_dot_by_layer_idx,
            }
            arguments |= more | dict(extra_attention_params or {})
            return attention_factory(attention_module)(self.context, part, d_model, nhead, **arguments)

        self.self_attn = attention("self_attn", scale_qk_dot_by_d=scale_qk_dot_by_d)
        self.norm1 = norm_layer(self.context, "norm1", d_model, layer_norm_eps)
        if add_cross_attention:
            columns = cross_attention_kv_dim or d_model
            self.multihead_attn = attention("multihead_attn", kdim=columns, vdim=columns)
            self.norm2 = norm_layer(self.context, "norm2", d_model, layer_norm_eps)
        self.norm3 = norm_layer(self.context, "norm3", d_model, layer_norm_eps)
        self.ffn = FeedForwardNetwork(
            self.context, "ffn", d_model, [dim_feedforward, d_model], [activation, None], use_ffn_bias
        )

    def __call__(
        self,
        graph: Graph,
        tgt: ir.Value,
        memory: ir.Value | None = None,
        tgt_mask: ir.Value | None = None,
        memory_mask: ir.Value | None = None,
        tgt_key_padding_mask: ir.Value | None = None,
        memory_key_padding_mask: ir.Value | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        past_kv: PastKeyValue | None = None,
        cache_present_kv: bool = False,
        self_attn_position_bias: ir.Value | StepBias | None = None,
        cross_attn_position_bias: ir.Value | None = None,
        layer_idx: int | None = None,
        step: Step | None = None,
    ) -> ir.Value | tuple[ir.Value, PastKeyValue]:
        """Maps `[B, L, D]` to the same shape; see `poptransformer.nn.TransformerDecoderLayer`.

        `step` is for self-attention; see `MultiheadAttention`.
        """
        present: list[ir.Value] = []
        numbered: dict[str, Any] = {} if step is None else {"step": step}

        def attend(layer: Any, x: ir.Value, keys: ir.Value, **arguments: Any) -> ir.Value:
            attended = layer(graph, x, keys, keys, cache_present_kv=cache_present_kv, layer_idx=layer_idx, **arguments)
            if not cache_present_kv:
                return attended
            present.extend(attended[1])
            return attended[0]

        def self_attention(x: ir.Value) -> ir.Value:
            return attend(
                *(self.self_attn, x, x),
                attn_mask=tgt_mask,
                key_padding_mask=tgt_key_padding_mask,
                past_kv=None if past_kv is None else past_kv[:2],
                position_bias=self_attn_position_bias,
                rotary_position_embedding_helper=rotary_position_embedding_helper,
                **numbered,
            )

        def cross_attention(x: ir.Value) -> ir.Value:
            past = None if past_kv is None or len(past_kv) < 4 else past_kv[2:]
            if memory is None and past is None:
                raise ConfigError("This decoder attends to an encoder: give memory, or set add_cross_attention=False.")
            return attend(
                *(self.multihead_attn, x, x if memory is None else memory),
                attn_mask=memory_mask,
                key_padding_mask=memory_key_padding_mask,
                past_kv=past,
                past_kv_self_attn=False,
                position_bias=cross_attn_position_bias,
            )

        with graph.nameScope(self.context):
            x = residual(graph, tgt, self.norm1, self_attention, self.norm_first)
            if self.add_cross_attention:
                x = residual(graph, x, self.norm2, cross_attention, self.norm_first)
            x = residual(graph, x, self.norm3, lambda y: self.ffn(graph, y), self.norm_first)
            return (x, tuple(present)) if cache_present_kv else x


class TransformerDecoder(BaseLayer):
    """`poptransformer.nn.TransformerDecoder` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        decoder_layer: called with context and name, makes a layer.
        num_layers: layers.
        norm: called with context and name, makes the norm of the last layer's output; None for none.
        first_block: number of the first layer for `layer_per_ipu`; behind an encoder, the encoder's layers.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        decoder_layer: LayerFactory,
        num_layers: int,
        norm: LayerFactory | None = None,
        *,
        first_block: int = 0,
    ) -> None:
        super().__init__(context, name)
        self.first_block = first_block
        self.layers = [decoder_layer(self.context, f"layers.{index}") for index in range(num_layers)]
        self.norm = None if norm is None else norm(self.context, "norm")

    def __call__(
        self,
        graph: Graph,
        tgt: ir.Value,
        memory: ir.Value | None = None,
        tgt_mask: ir.Value | None = None,
        memory_mask: ir.Value | None = None,
        tgt_key_padding_mask: ir.Value | None = None,
        memory_key_padding_mask: ir.Value | None = None,
        self_attn_position_bias: ir.Value | StepBias | None = None,
        cross_attn_position_bias: ir.Value | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        past_kv: Sequence[PastKeyValue] | None = None,
        cache_present_kv: bool = False,
        extract_layer_idx: int | None = None,
        step: Step | None = None,
    ) -> ir.Value | tuple[ir.Value, list[PastKeyValue]]:
        """Maps `[B, L, D]` to the same shape; see `poptransformer.nn.TransformerDecoder`.

        With `step`, in a model of `poptransformer.models`, self-attention is causal over the engine's caches.
        """
        with graph.nameScope(self.context):
            x, presents = tgt, []
            for index in range(last_layer(extract_layer_idx, len(self.layers)) + 1):
                with self.block_scope(graph, self.first_block + index):
                    x = self.layers[index](
                        *(graph, x, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask),
                        rotary_position_embedding_helper=rotary_position_embedding_helper,
                        past_kv=None if past_kv is None else past_kv[index],
                        cache_present_kv=cache_present_kv,
                        self_attn_position_bias=self_attn_position_bias,
                        cross_attn_position_bias=cross_attn_position_bias,
                        layer_idx=index,
                        **({} if step is None else {"step": step}),
                    )
                if cache_present_kv:
                    x, present = x
                    presents.append(present)
            if self.norm is not None and extract_layer_idx is None:
                x = self.norm(graph, x)
            return (x, presents) if cache_present_kv else x
