# SPDX-License-Identifier: Apache-2.0
"""Transformer encoder of the layers API, as a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from poptransformer import ops
from poptransformer.build import check_choice
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding_positions import RotaryPositionEmbeddingHelper, StepBias
from poptransformer.layers.feed_forward import FeedForwardNetwork
from poptransformer.layers.multihead_attention import MultiheadAttention
from poptransformer.layers.norm import LayerNorm
from poptransformer.layers.training_only import check_training_only
from poptransformer.step import Step

# Called with a context and a name, makes the layer of that name: a class with its other arguments bound.
LayerFactory = Callable[..., Any]

ATTENTION_MODULES: dict[str, LayerFactory] = {"aiayn_attention": MultiheadAttention}


def attention_factory(module: str | LayerFactory) -> LayerFactory:
    """Returns the attention layer of that name; a class is returned as it is."""
    if isinstance(module, str):
        check_choice("attention_module", module, tuple(ATTENTION_MODULES))
        return ATTENTION_MODULES[module]
    return module


def last_layer(extract_layer_idx: int | None, num_layers: int) -> int:
    """Returns the number of the last layer to run.

    Raises:
        ConfigError: there is no such layer.
    """
    if extract_layer_idx is None:
        return num_layers - 1
    if not 0 <= extract_layer_idx < num_layers:
        raise ConfigError(f"extract_layer_idx must be from 0 to {num_layers - 1}, found {extract_layer_idx}.")
    return extract_layer_idx


def residual(graph: Graph, x: ir.Value, norm: Any, block: Callable[[ir.Value], ir.Value], norm_first: bool) -> ir.Value:
    """Adds a block's output to its input; the norm comes before the block, or after the sum."""
    if norm_first:
        return ops.add(graph, x, block(norm(graph, x)))
    return norm(graph, ops.add(graph, x, block(x)))


class TransformerEncoderLayer(BaseLayer):
    """`poptransformer.nn.TransformerEncoderLayer` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        d_model: see `poptransformer.nn.TransformerEncoderLayer`, as for all that follow.
        nhead: N.
        dim_feedforward: columns inside of the feed-forward network.
        dropout: has no effect here.
        activation: name of the feed-forward network's activation.
        layer_norm_eps: added to variances.
        batch_first: must be true.
        norm_layer: called with context, name, size and eps, makes a norm.
        norm_first: norms before attention and feed-forward network, not after the sums.
        attention_module: `aiayn_attention`, or a graph layer with the arguments of `MultiheadAttention`.
        extra_attention_params: more arguments of the attention layer.
        attention_type: see `MultiheadAttention`.
        attention_inner_dim: columns of all heads together; None is D.
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
        attention_type: str = "scaled_dot_product",
        attention_inner_dim: int | None = None,
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        **training_only: object,
    ) -> None:
        super().__init__(context, name)
        check_training_only(type(self).__name__, training_only)
        self.norm_first = norm_first
        self.self_attn = attention_factory(attention_module)(
            *(self.context, "self_attn", d_model, nhead),
            inner_dim=attention_inner_dim,
            batch_first=batch_first,
            attention_type=attention_type,
            use_projection_bias=use_projection_bias_in_attention,
            use_ffn_bias=use_ffn_bias_in_attention,
            **dict(extra_attention_params or {}),
        )
        self.ffn = FeedForwardNetwork(
            self.context, "ffn", d_model, [dim_feedforward, d_model], [activation, None], use_ffn_bias
        )
        self.norm1 = norm_layer(self.context, "norm1", d_model, layer_norm_eps)
        self.norm2 = norm_layer(self.context, "norm2", d_model, layer_norm_eps)

    def __call__(
        self,
        graph: Graph,
        src: ir.Value,
        src_mask: ir.Value | None = None,
        src_key_padding_mask: ir.Value | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        self_attn_position_bias: ir.Value | StepBias | None = None,
        layer_idx: int | None = None,
        step: Step | None = None,
    ) -> ir.Value:
        """Maps `[B, L, D]` to the same shape; for `layer_idx` and `step` see `MultiheadAttention`."""
        numbered = {} if step is None else {"layer_idx": layer_idx, "step": step}

        def attend(x: ir.Value) -> ir.Value:
            return self.self_attn(
                *(graph, x, x, x),
                attn_mask=src_mask,
                key_padding_mask=src_key_padding_mask,
                position_bias=self_attn_position_bias,
                rotary_position_embedding_helper=rotary_position_embedding_helper,
                **numbered,
            )

        return self._blocks(graph, src, attend)

    def _blocks(self, graph: Graph, src: ir.Value, attend: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """Attention and feed-forward network, each with its norm and its sum."""
        with graph.nameScope(self.context):
            x = residual(graph, src, self.norm1, attend, self.norm_first)
            return residual(graph, x, self.norm2, lambda y: self.ffn(graph, y), self.norm_first)


class TransformerEncoder(BaseLayer):
    """`poptransformer.nn.TransformerEncoder` as a graph, with the weights of its state dict.

        layer = functools.partial(TransformerEncoderLayer, d_model=64, nhead=2)
        encoder = TransformerEncoder(None, "encoder", layer, num_layers=2)

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        encoder_layer: called with context and name, makes a layer.
        num_layers: layers.
        norm: called with context and name, makes the norm of the last layer's output; None for none.
        enable_nested_tensor: must be false.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        encoder_layer: LayerFactory,
        num_layers: int,
        norm: LayerFactory | None = None,
        enable_nested_tensor: bool = False,
    ) -> None:
        super().__init__(context, name)
        if enable_nested_tensor:
            raise ConfigError("enable_nested_tensor must be false: padding is masked.")
        self.layers = [encoder_layer(self.context, f"layers.{index}") for index in range(num_layers)]
        self.norm = None if norm is None else norm(self.context, "norm")

    def __call__(
        self,
        graph: Graph,
        src: ir.Value,
        mask: ir.Value | None = None,
        src_key_padding_mask: ir.Value | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        self_attn_position_bias: ir.Value | StepBias | None = None,
        extract_layer_idx: int | None = None,
        step: Step | None = None,
    ) -> ir.Value:
        """Maps `[B, L, D]` to the same shape; see `poptransformer.nn.TransformerEncoder`.

        With `step`, in a model of `poptransformer.models`, all layers attend causally over the engine's caches.
        """

        def run(index: int, x: ir.Value) -> ir.Value:
            return self.layers[index](
                *(graph, x, mask, src_key_padding_mask),
                rotary_position_embedding_helper=rotary_position_embedding_helper,
                self_attn_position_bias=self_attn_position_bias,
                **({} if step is None else {"layer_idx": index, "step": step}),
            )

        return self._stack(graph, src, extract_layer_idx, run)

    def _stack(
        self, graph: Graph, src: ir.Value, extract_layer_idx: int | None, run: Callable[[int, ir.Value], ir.Value]
    ) -> ir.Value:
        """The layers one after the other, each in its block, up to the one that is asked for; else the norm too."""
        with graph.nameScope(self.context):
            x = src
            for index in range(last_layer(extract_layer_idx, len(self.layers)) + 1):
                with self.block_scope(graph, index):
                    x = run(index, x)
            return x if self.norm is None or extract_layer_idx is not None else self.norm(graph, x)
