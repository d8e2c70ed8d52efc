# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poptransformer.errors import ConfigError
from poptransformer.nn.decoder import TransformerDecoder, TransformerDecoderLayer
from poptransformer.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from poptransformer.nn.feed_forward import Activation
from poptransformer.nn.initializers import InitializerSpec


class Transformer(nn.Module):
    """The whole of "Attention Is All You Need" (torch.nn.Transformer).

    Args:
        d_model: D.
        nhead: N.
        num_encoder_layers: encoder layers.
        num_decoder_layers: decoder layers.
        dim_feedforward: columns inside of the feed-forward networks.
        dropout: probability of every dropout.
        activation: of the feed-forward networks.
        custom_encoder: stands in place of the encoder.
        custom_decoder: stands in place of the decoder.
        layer_norm_eps: added to variances.
        batch_first: must be true.
        norm_first: see `TransformerEncoderLayer`.
        attention_type: see `MultiheadAttention`.
        use_projection_bias_in_attention: see `TransformerEncoderLayer`.
        use_ffn_bias_in_attention: see `TransformerEncoderLayer`.
        use_ffn_bias: see `TransformerEncoderLayer`.
        attention_initializer: see `MultiheadAttention`.
        ffn_initializer: see `TransformerEncoderLayer`.
        device: where parameters lie.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        custom_encoder: nn.Module | None = None,
        custom_decoder: nn.Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        attention_type: str = "scaled_dot_product",
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        attention_initializer: InitializerSpec = "xavier_uniform",
        ffn_initializer: InitializerSpec = "xavier_uniform",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first

        def layer(kind: type[TransformerEncoderLayer] | type[TransformerDecoderLayer]) -> nn.Module:
            return kind(
                d_model,
                nhead,
                dim_feedforward,
                dropout,
                activation,
                layer_norm_eps,
                batch_first,
                norm_first=norm_first,
                attention_type=attention_type,
                use_projection_bias_in_attention=use_projection_bias_in_attention,
                use_ffn_bias_in_attention=use_ffn_bias_in_attention,
                use_ffn_bias=use_ffn_bias,
                attention_initializer=attention_initializer,
                ffn_initializer=ffn_initializer,
                device=device,
            )

        def norm() -> nn.Module:
            return nn.LayerNorm(d_model, eps=layer_norm_eps, device=device)

        self.encoder = custom_encoder or TransformerEncoder(layer(TransformerEncoderLayer), num_encoder_layers, norm())
        self.decoder = custom_decoder or TransformerDecoder(layer(TransformerDecoderLayer), num_decoder_layers, norm())

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        self.encoder.reset_parameters()  # type: ignore[operator]
        self.decoder.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns `[B, L, D]` for a source `[B, S, D]` and a target `[B, L, D]`; masks as in `MultiheadAttention`.

        Raises:
            ConfigError: rows differ, or columns are not `d_model`.
        """
        if src.shape[0] != tgt.shape[0] or {src.shape[-1], tgt.shape[-1]} != {self.d_model}:
            raise ConfigError(
                f"src and tgt must have the same rows and {self.d_model} columns, found shapes {list(src.shape)} and "
                f"{list(tgt.shape)}."
            )
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
        return self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
        )
