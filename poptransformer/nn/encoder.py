# SPDX-License-Identifier: Apache-2.0
"""Transformer encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from poptransformer.build import check_choice
from poptransformer.errors import ConfigError
from poptransformer.nn.attention import MultiheadAttention
from poptransformer.nn.feed_forward import Activation, FeedForwardNetwork
from poptransformer.nn.initializers import InitializerSpec
from poptransformer.nn.positions import RotaryPositionEmbeddingHelper

ATTENTION_MODULES: dict[str, type[nn.Module]] = {"aiayn_attention": MultiheadAttention}


def attention_class(module: str | type[nn.Module]) -> type[nn.Module]:
    """Returns the attention layer of that name; a class is returned as it is."""
    if isinstance(module, str):
        check_choice("attention_module", module, tuple(ATTENTION_MODULES))
        return ATTENTION_MODULES[module]
    return module


def reset_norm(norm: nn.Module | None) -> None:
    """Sets a norm's weight to ones and its bias to zeros, where it has them."""
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        parameter = getattr(norm, name, None)
        if parameter is not None:
            parameter.data.fill_(value)


def clones(layer: nn.Module, count: int) -> nn.ModuleList:
    """Copies a layer `count` times; each copy draws parameters of its own."""
    layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(count))
    for copied in layers:
        copied.reset_parameters()  # type: ignore[operator]
    return layers


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


class TransformerEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network (torch.nn.TransformerEncoderLayer, without biases unless asked for).

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
        attention_module: `aiayn_attention`, or a class with the arguments of `MultiheadAttention`.
        extra_attention_params: more arguments of the attention layer.
        device: where parameters lie.
        attention_dropout_rate: dropout of attention weights; None is `dropout`.
        attention_type: see `MultiheadAttention`.
        attention_softmax_fp32: softmax in fp32.
        attention_inner_dim: columns of all heads together; None is D.
        use_projection_bias_in_attention: biases of the projections of queries, keys and values.
        use_ffn_bias_in_attention: bias of attention's output projection.
        use_ffn_bias: biases of the feed-forward network.
        attention_initializer: see `MultiheadAttention`.
        attention_q_initializer: see `MultiheadAttention`.
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
        attention_dropout_rate: float | None = None,
        attention_type: str = "scaled_dot_product",
        attention_softmax_fp32: bool = True,
        attention_inner_dim: int | None = None,
        use_projection_bias_in_attention: bool = False,
        use_ffn_bias_in_attention: bool = False,
        use_ffn_bias: bool = False,
        attention_initializer: InitializerSpec = "xavier_uniform",
        attention_q_initializer: InitializerSpec | None = None,
        ffn_initializer: InitializerSpec = "xavier_uniform",
        ffn_output_layer_initializer: InitializerSpec | None = None,
        use_ff_layer1_dropout: bool = True,
        use_ff_layer2_dropout: bool = True,
        ffn_dropout_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = attention_class(attention_module)(
            d_model,
            nhead,
            inner_dim=attention_inner_dim,
            dropout=dropout if attention_dropout_rate is None else attention_dropout_rate,
            batch_first=batch_first,
            attention_type=attention_type,
            softmax_dtype_fp32=attention_softmax_fp32,
            use_projection_bias=use_projection_bias_in_attention,
            use_ffn_bias=use_ffn_bias_in_attention,
            attention_initializer=attention_initializer,
            attention_q_initializer=attention_q_initializer,
            device=device,
            **dict(extra_attention_params or {}),
        )
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
        self.norm1 = norm_layer(d_model, eps=layer_norm_eps, device=device)
        self.norm2 = norm_layer(d_model, eps=layer_norm_eps, device=device)
        self.dropout1 = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        self.self_attn.reset_parameters()  # type: ignore[operator]
        self.ffn.reset_parameters()
        reset_norm(self.norm1)
        reset_norm(self.norm2)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        self_attn_position_bias: Tensor | None = None,
    ) -> Tensor:
        """Maps `[B, L, D]` to the same shape.

        Args:
            src: `[B, L, D]`.
            src_mask: `attn_mask` of `MultiheadAttention`.
            src_key_padding_mask: `key_padding_mask` of `MultiheadAttention`.
            rotary_position_embedding_helper: rotates queries and keys.
            self_attn_position_bias: added to the scores.
        """

        def attend(x: Tensor) -> Tensor:
            attended = self.self_attn(
                x,
                x,
                x,
                attn_mask=src_mask,
                key_padding_mask=src_key_padding_mask,
                position_bias=self_attn_position_bias,
                rotary_position_embedding_helper=rotary_position_embedding_helper,
            )
            return self.dropout1(attended)

        return self._blocks(src, attend)

    def _blocks(self, src: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Attention and feed-forward network, each with its norm and its sum."""
        if self.norm_first:
            x = src + attend(self.norm1(src))
            return x + self.ffn(self.norm2(x))
        x = self.norm1(src + attend(src))
        return self.norm2(x + self.ffn(x))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers (torch.nn.TransformerEncoder).

    Args:
        encoder_layer: a `TransformerEncoderLayer` to copy; each copy draws parameters of its own.
        num_layers: layers.
        norm: norm of the last layer's output.
        enable_nested_tensor: must be false; torch's fast path for padded batches.
    """

    def __init__(
        self,
        encoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = False,
    ) -> None:
        super().__init__()
        if enable_nested_tensor:
            raise ConfigError("enable_nested_tensor must be false: padding is masked.")
        self.layers = clones(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]
        reset_norm(self.norm)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        self_attn_position_bias: Tensor | None = None,
        extract_layer_idx: int | None = None,
    ) -> Tensor:
        """Maps `[B, L, D]` to the same shape.

        Args:
            src: `[B, L, D]`.
            mask: `attn_mask` of `MultiheadAttention`.
            src_key_padding_mask: `key_padding_mask` of `MultiheadAttention`.
            rotary_position_embedding_helper: rotates queries and keys.
            self_attn_position_bias: added to the scores.
            extract_layer_idx: return the output of that layer, without the last norm.
        """
        x = src
        for layer in self.layers[: last_layer(extract_layer_idx, self.num_layers) + 1]:
            x = layer(
                x,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                rotary_position_embedding_helper=rotary_position_embedding_helper,
                self_attn_position_bias=self_attn_position_bias,
            )
        return x if self.norm is None or extract_layer_idx is not None else self.norm(x)
