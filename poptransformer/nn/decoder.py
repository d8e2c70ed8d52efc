# SPDX-License-Identifier: Apache-2.0
"""Transformer decoder, with or without attention to an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poptransformer.errors import ConfigError
from poptransformer.nn.encoder import attention_class, clones, last_layer, reset_norm
from poptransformer.nn.feed_forward import Activation, FeedForwardNetwork
from poptransformer.nn.initializers import InitializerSpec
from poptransformer.nn.positions import RotaryPositionEmbeddingHelper

PastKeyValue = tuple[Tensor, ...]


class TransformerDecoderLayer(nn.Module):
    """Self-attention, attention to an encoder, and a feed-forward network (torch.nn.TransformerDecoderLayer).

    Args:
        d_model: D.
        nhead: N.
        dim_feedforward: columns inside of the feed-forward network.
        dropout: probability of every dropout that is not named.
        activation: of the feed-forward network.
        layer_norm_eps: added to variances.
        batch_first: must be true.
        norm_layer: class of the norms.
        norm_first: norms before attention and feed-forward network, not after the sums.
        attention_module: see `TransformerEncoderLayer`.
        extra_attention_params: more arguments of the attention layers.
        device: where parameters lie.
        add_cross_attention: attend to `memory`; GPT-style models do not.
        attention_dropout_rate: dropout of attention weights; None is `dropout`.
        attention_softmax_fp32: softmax in fp32.
        attention_type: see `MultiheadAttention`.
        scale_qk_dot_by_d: of self-attention; see `MultiheadAttention`.
        scale_qk_dot_by_layer_idx: see `MultiheadAttention`.
        attention_inner_dim: columns of all heads together; None is D.
        cross_attention_kv_dim: columns of `memory`; None is D.
        use_projection_bias_in_attention: biases of the projections of queries, keys and values.
        use_ffn_bias_in_attention: bias of attention's output projection.
        use_ffn_bias: biases of the feed-forward network.
        attention_initializer: see `MultiheadAttention`.
        attention_q_initializer: see `MultiheadAttention`.
        attention_output_layer_initializer: of attention's output projection, if another one.
        ffn_initializer: of the feed-forward network's weights.
        ffn_output_layer_initializer: of its last weight, if another one.
        use_ff_layer1_dropout: dropout after the activation.
        use_ff_layer2_dropout: dropout at the end of the feed-forward network.
        ffn_dropout_rate: dropout after the activation; None is `dropout`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        norm_first: bool = False,
        attention_module: str | type[nn.Module] = "aiayn_attention",
        extra_attention_params: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        add_cross_attention: bool = True,
        attention_dropout_rate: float | None = None,
        attention_softmax_fp32: bool = True,
        attention_type: str = "scaled_dot_product",
        scale_qk_dot_by_d: bool = False,
        scale_qk_dot_by_layer_idx: bool = False,
        attention_inner_dim: int | None = None,
        cross_attention_kv_dim: int | None = None,
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        attention_initializer: InitializerSpec = "xavier_uniform",
        attention_q_initializer: InitializerSpec | None = None,
        attention_output_layer_initializer: InitializerSpec | None = None,
        ffn_initializer: InitializerSpec = "xavier_uniform",
        ffn_output_layer_initializer: InitializerSpec | None = None,
        use_ff_layer1_dropout: bool = True,
        use_ff_layer2_dropout: bool = True,
        ffn_dropout_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.add_cross_attention = add_cross_attention

        def attention(**more: Any) -> nn.Module:
            arguments = {
                "inner_dim": attention_inner_dim,
                "dropout": dropout if attention_dropout_rate is None else attention_dropout_rate,
                "batch_first": batch_first,
                "attention_type": attention_type,
                "softmax_dtype_fp32": attention_softmax_fp32,
                "use_projection_bias": use_projection_bias_in_attention,
                "use_ffn_bias": use_ffn_bias_in_attention,
                "attention_initializer": attention_initializer,
                "attention_q_initializer": attention_q_initializer,
                "output_layer_initializer": attention_output_layer_initializer,
                "scale_qk_dot_by_layer_idx": scale_qk_dot_by_layer_idx,
                "device": device,
            }
            arguments |= more | dict(extra_attention_params or {})
            return attention_class(attention_module)(d_model, nhead, **arguments)

        self.self_attn = attention(scale_qk_dot_by_d=scale_qk_dot_by_d)
        self.norm1 = norm_layer(d_model, eps=layer_norm_eps, device=device)
        self.dropout1 = nn.Dropout(dropout)
        if add_cross_attention:
            columns = cross_attention_kv_dim or d_model
            self.multihead_attn = attention(kdim=columns, vdim=columns)
            self.norm2 = norm_layer(d_model, eps=layer_norm_eps, device=device)
            self.dropout2 = nn.Dropout(dropout)
        self.norm3 = norm_layer(d_model, eps=layer_norm_eps, device=device)
        inner_dropout = dropout if ffn_dropout_rate is None else ffn_dropout_rate
        self.ffn = FeedForwardNetwork(
            d_model,
            [dim_feedforward, d_model],
            [activation, None],
            [inner_dropout if use_ff_layer1_dropout else None, dropout if use_ff_layer2_dropout else None],
            use_ffn_bias,
            ffn_initializer,
            output_layer_initializer=ffn_output_layer_initializer,
            device=device,
        )

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        self.self_attn.reset_parameters()  # type: ignore[operator]
        self.ffn.reset_parameters()
        reset_norm(self.norm1)
        reset_norm(self.norm3)
        if self.add_cross_attention:
            self.multihead_attn.reset_parameters()  # type: ignore[operator]
            reset_norm(self.norm2)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        past_kv: PastKeyValue | None = None,
        cache_present_kv: bool = False,
        self_attn_position_bias: Tensor | None = None,
        cross_attn_position_bias: Tensor | None = None,
        layer_idx: int | None = None,
    ) -> Tensor | tuple[Tensor, PastKeyValue]:
        """Maps `[B, L, D]` to the same shape; with `cache_present_kv` a tuple of that and the keys and values.

        Args:
            tgt: `[B, L, D]`.
            memory: the encoder's output `[B, S, D]`.
            tgt_mask: `attn_mask` of self-attention; see `MultiheadAttention`.
            memory_mask: `attn_mask` of attention to `memory`.
            tgt_key_padding_mask: `key_padding_mask` of self-attention.
            memory_key_padding_mask: `key_padding_mask` of attention to `memory`.
            rotary_position_embedding_helper: rotates queries and keys of self-attention.
            past_kv: keys and values of earlier calls, `[B, N, P, H]` each: of self-attention, then of attention to
                `memory`, whose projections are not computed again.
            cache_present_kv: return keys and values, in the form of `past_kv`.
            self_attn_position_bias: added to the scores of self-attention.
            cross_attn_position_bias: added to the scores of attention to `memory`.
            layer_idx: number of the layer.

        Raises:
            ConfigError: the layer attends to `memory`, and there is none.
        """
        present: list[Tensor] = []

        def attend(layer: nn.Module, dropout: nn.Module, x: Tensor, keys: Tensor, **arguments: Any) -> Tensor:
            attended = layer(x, keys, keys, cache_present_kv=cache_present_kv, layer_idx=layer_idx, **arguments)
            if cache_present_kv:
                attended, kept = attended
                present.extend(kept)
            return dropout(attended)

        def self_attention(x: Tensor) -> Tensor:
            return attend(
                *(self.self_attn, self.dropout1, x, x),
                attn_mask=tgt_mask,
                key_padding_mask=tgt_key_padding_mask,
                past_kv=None if past_kv is None else past_kv[:2],
                position_bias=self_attn_position_bias,
                rotary_position_embedding_helper=rotary_position_embedding_helper,
            )

        def cross_attention(x: Tensor) -> Tensor:
            past = None if past_kv is None or len(past_kv) < 4 else past_kv[2:]
            if memory is None and past is None:
                raise ConfigError("This decoder attends to an encoder: give memory, or set add_cross_attention=False.")
            return attend(
                *(self.multihead_attn, self.dropout2, x, x if memory is None else memory),
                attn_mask=memory_mask,
                key_padding_mask=memory_key_padding_mask,
                past_kv=past,
                past_kv_self_attn=False,
                position_bias=cross_attn_position_bias,
            )

        x = self._residual(tgt, self.norm1, self_attention)
        if self.add_cross_attention:
            x = self._residual(x, self.norm2, cross_attention)
        x = self._residual(x, self.norm3, self.ffn)
        return (x, tuple(present)) if cache_present_kv else x

    def _residual(self, x: Tensor, norm: nn.Module, block: Any) -> Tensor:
        return x + block(norm(x)) if self.norm_first else norm(x + block(x))


class TransformerDecoder(nn.Module):
    """A stack of decoder layers (torch.nn.TransformerDecoder).

    Args:
        decoder_layer: a `TransformerDecoderLayer` to copy; each copy draws parameters of its own.
        num_layers: layers.
        norm: norm of the last layer's output.
    """

    def __init__(self, decoder_layer: nn.Module, num_layers: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = clones(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]
        reset_norm(self.norm)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        self_attn_position_bias: Tensor | None = None,
        cross_attn_position_bias: Tensor | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        past_kv: Sequence[PastKeyValue] | None = None,
        cache_present_kv: bool = False,
        extract_layer_idx: int | None = None,
    ) -> Tensor | tuple[Tensor, list[PastKeyValue]]:
        """Maps `[B, L, D]` to the same shape; with `cache_present_kv` a tuple of that and each layer's keys and values.

        Args:
            tgt: `[B, L, D]`.
            memory: the encoder's output `[B, S, D]`.
            tgt_mask: `attn_mask` of self-attention; see `MultiheadAttention`.
            memory_mask: `attn_mask` of attention to `memory`.
            tgt_key_padding_mask: `key_padding_mask` of self-attention.
            memory_key_padding_mask: `key_padding_mask` of attention to `memory`.
            self_attn_position_bias: added to the scores of self-attention.
            cross_attn_position_bias: added to the scores of attention to `memory`.
            rotary_position_embedding_helper: rotates queries and keys of self-attention.
            past_kv: keys and values of earlier calls, one tuple for each layer.
            cache_present_kv: return keys and values.
            extract_layer_idx: return the output of that layer, without the last norm.
        """
        x, presents = tgt, []
        for index, layer in enumerate(self.layers[: last_layer(extract_layer_idx, self.num_layers) + 1]):
            x = layer(
                x,
                memory=memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                rotary_position_embedding_helper=rotary_position_embedding_helper,
                past_kv=None if past_kv is None else past_kv[index],
                cache_present_kv=cache_present_kv,
                self_attn_position_bias=self_attn_position_bias,
                cross_attn_position_bias=cross_attn_position_bias,
                layer_idx=index,
            )
            if cache_present_kv:
                x, present = x
                presents.append(present)
        if self.norm is not None and extract_layer_idx is None:
            x = self.norm(x)
        return (x, presents) if cache_present_kv else x
