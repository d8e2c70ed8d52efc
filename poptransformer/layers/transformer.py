# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder of the layers API together, as a graph."""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir

from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.norm import LayerNorm
from poptransformer.layers.training_only import check_training_only
from poptransformer.layers.transformer_decoder import TransformerDecoder, TransformerDecoderLayer
from poptransformer.layers.transformer_encoder import LayerFactory, TransformerEncoder, TransformerEncoderLayer


class Transformer(BaseLayer):
    """`poptransformer.nn.Transformer` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        d_model: see `poptransformer.nn.Transformer`, as for all that follow.
        nhead: N.
        num_encoder_layers: encoder layers.
        num_decoder_layers: decoder layers.
        dim_feedforward: columns inside of the feed-forward networks.
        dropout: has no effect here.
        activation: name of the feed-forward networks' activation.
        custom_encoder: called with context and name, makes what stands in place of the encoder.
        custom_decoder: called with context and name, makes what stands in place of the decoder.
        layer_norm_eps: added to variances.
        batch_first: must be true.
        norm_first: see `TransformerEncoderLayer`.
        attention_type: see `MultiheadAttention`.
        use_projection_bias_in_attention: see `TransformerEncoderLayer`.
        use_ffn_bias_in_attention: see `TransformerEncoderLayer`.
        use_ffn_bias: see `TransformerEncoderLayer`.
        **training_only: arguments that have no effect here.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "gelu",
        custom_encoder: LayerFactory | None = None,
        custom_decoder: LayerFactory | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        attention_type: str = "scaled_dot_product",
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        **training_only: object,
    ) -> None:
        super().__init__(context, name)
        check_training_only(type(self).__name__, training_only)

        def layer(kind: LayerFactory) -> LayerFactory:
            return functools.partial(
                kind,
                d_model=d_model,
                nhead=nhead,
                dim_feedforward=dim_feedforward,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
                batch_first=batch_first,
                norm_first=norm_first,
                attention_type=attention_type,
                use_projection_bias_in_attention=use_projection_bias_in_attention,
                use_ffn_bias_in_attention=use_ffn_bias_in_attention,
                use_ffn_bias=use_ffn_bias,
            )

        norm = functools.partial(LayerNorm, input_size=d_model, eps=layer_norm_eps)
        encoder = custom_encoder or functools.partial(
            TransformerEncoder,
            encoder_layer=layer(TransformerEncoderLayer),
            num_layers=num_encoder_layers,
            norm=norm,
        )
        decoder = custom_decoder or functools.partial(
            TransformerDecoder,
            decoder_layer=layer(TransformerDecoderLayer),
            num_layers=num_decoder_layers,
            norm=norm,
            first_block=num_encoder_layers,
        )
        self.encoder: Any = encoder(self.context, "encoder")
        self.decoder: Any = decoder(self.context, "decoder")

    def __call__(
        self,
        graph: Graph,
        src: ir.Value,
        tgt: ir.Value,
        src_mask: ir.Value | None = None,
        tgt_mask: ir.Value | None = None,
        memory_mask: ir.Value | None = None,
        src_key_padding_mask: ir.Value | None = None,
        tgt_key_padding_mask: ir.Value | None = None,
        memory_key_padding_mask: ir.Value | None = None,
    ) -> ir.Value:
        """Returns `[B, L, D]` for a source `[B, S, D]` and a target `[B, L, D]`."""
        with graph.nameScope(self.context):
            memory = self.encoder(graph, src, src_mask, src_key_padding_mask)
            masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
            decoded: ir.Value = self.decoder(graph, tgt, memory, *masks)
            return decoded
