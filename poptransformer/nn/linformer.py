# SPDX-License-Identifier: Apache-2.0
"""Linformer: attention to k mixtures of keys and values in place of all n of them (https://arxiv.org/abs/2006.04768)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poptransformer.attention_rules import check_linformer, check_no_positions, check_projection
from poptransformer.errors import ConfigError
from poptransformer.nn.attention import MultiheadAttention
from poptransformer.nn.encoder import TransformerEncoder, TransformerEncoderLayer, last_layer
from poptransformer.nn.initializers import InitializerSpec, create_initializer

Matrices = tuple[Tensor, Tensor]
# Matrices that a layer has of its own.
OWN_MATRICES = {
    "linformer-shared-heads": ("proj_e", "proj_f"),
    "linformer-shared-kv": ("proj_e",),
    "linformer-shared-layers": (),
}


class LinformerAttention(MultiheadAttention):
    """Attention whose keys and values are multiplied by matrices E and F `[k, n]` first.

    Padded keys and values are set to zero before that, so that a row's result depends neither on its padding nor on
    how much of it there is: a row of fewer than n tokens needs the first columns of E and F alone.

    Args:
        embed_dim: D, columns of queries and of the output.
        num_heads: N.
        max_sequence_length: n, the most keys of a row.
        projected_dims: k, keys that remain.
        attention_style: which matrices are shared, by all heads in any case: `linformer-shared-heads` has E and F,
            `linformer-shared-kv` one for keys and values, `linformer-shared-layers` takes the one of all layers in
            the call.
        projection_initializer: of E and F; None is `attention_initializer`.
        **arguments: those of `MultiheadAttention`; `attention_type` must not be `scaled_cosine`.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        max_sequence_length: int,
        projected_dims: int,
        attention_style: str = "linformer-shared-heads",
        projection_initializer: InitializerSpec | None = None,
        **arguments: Any,
    ) -> None:
        check_linformer(
            max_sequence_length, projected_dims, attention_style, arguments.get("attention_type", "scaled_dot_product")
        )
        super().__init__(embed_dim, num_heads, **arguments)
        self.max_sequence_length = max_sequence_length
        self.projected_dims = projected_dims
        self.attention_style = attention_style
        self.projection_initializer = projection_initializer or arguments.get("attention_initializer", "xavier_uniform")
        for name in OWN_MATRICES[attention_style]:
            matrix = nn.Linear(max_sequence_length, projected_dims, bias=False, device=arguments.get("device"))
            create_initializer(self.projection_initializer)(matrix.weight.data)
            self.add_module(name, matrix)
            self.initializers[name] = self.projection_initializer

    def forward(  # type: ignore[override]
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: None = None,
        key_padding_mask: Tensor | None = None,
        position_bias: None = None,
        rotary_position_embedding_helper: None = None,
        lengths: Sequence[int] | Tensor | None = None,
        projection: Tensor | None = None,
        layer_idx: int | None = None,
    ) -> Tensor:
        """Returns the output `[B, L, D]`, or `[1, T, D]` for packed rows.

        Args:
            q: `[B, L, D]`; packed, the tokens of all sequences one after the other, `[1, T, D]`.
            k: `[B, S, kdim]`, S up to n; packed `[1, T, kdim]`.
            v: like `k`, with `vdim` columns.
            attn_mask: must be None, as keys have no positions once they are projected.
            key_padding_mask: `[B, S]`, True or nonzero for padding.
            position_bias: must be None.
            rotary_position_embedding_helper: must be None.
            lengths: tokens of each sequence of packed rows, as numbers or a tensor; their sum is T.
            projection: the matrix `[k, n]` of all layers, for `linformer-shared-layers`.
            layer_idx: number of the layer, for `scale_qk_dot_by_layer_idx`.

        Raises:
            ConfigError: an argument that must be None, a row of more than n tokens, or lengths that do not add up.
        """
        check_no_positions(
            {"attn_mask": attn_mask, "position_bias": position_bias}
            | {"rotary_position_embedding_helper": rotary_position_embedding_helper}
        )
        matrices = self._matrices(projection)
        query, key, value = self.proj_q_dense_layer(q), self.proj_k_dense_layer(k), self.proj_v_dense_layer(v)
        if lengths is None:
            if key_padding_mask is not None:
                padding = _padding(key_padding_mask, key)
                key, value = key.masked_fill(padding, 0.0), value.masked_fill(padding, 0.0)
            return self.proj_output_dense_layer(self._projected_attention(query, key, value, matrices, layer_idx))
        if key_padding_mask is not None:
            raise ConfigError("Packed rows have no padding; give lengths or key_padding_mask, not both.")
        lengths = [int(length) for length in lengths]
        check_lengths(lengths, (query, key, value))
        parts = [x.split(lengths, 1) for x in (query, key, value)]
        attended = [self._projected_attention(q, k, v, matrices, layer_idx) for q, k, v in zip(*parts, strict=True)]
        return self.proj_output_dense_layer(torch.cat(attended, 1))

    def _matrices(self, projection: Tensor | None) -> Matrices:
        """E and F, `[k, n]`."""
        check_projection(self.attention_style, projection is not None)
        if projection is not None:
            return projection, projection
        first, *others = (self.get_parameter(f"{name}.weight") for name in OWN_MATRICES[self.attention_style])
        return first, others[0] if others else first

    def _projected_attention(
        self, query: Tensor, key: Tensor, value: Tensor, matrices: Matrices, layer_idx: int | None
    ) -> Tensor:
        """Attended values `[B, L, N*H]` of `[B, L, N*H]` and `[B, S, N*H]`."""
        length = key.shape[1]
        if length > self.max_sequence_length:
            raise ConfigError(
                f"A row has {length} tokens, but max_sequence_length is {self.max_sequence_length}: E and F have no "
                "more columns. Shorten the input."
            )
        # All heads share a matrix, so one product serves them.
        key, value = (matrix[:, :length] @ x for matrix, x in zip(matrices, (key, value), strict=True))
        query, key, value = (self._heads(x) for x in (query, key, value))
        attended, _ = self._attend(query, key, value, None, layer_idx, need_weights=False)
        return attended.transpose(1, 2).flatten(-2)


def _padding(mask: Tensor, key: Tensor) -> Tensor:
    """The mask as booleans `[B, S, 1]`."""
    if mask.shape != key.shape[:2]:
        raise ConfigError(
            f"key_padding_mask must be [rows, keys] {list(key.shape[:2])} for Linformer attention, found "
            f"{list(mask.shape)}."
        )
    return mask.bool().unsqueeze(-1)


def check_lengths(lengths: Sequence[int], packed: Sequence[Tensor]) -> None:
    """Raises unless packed rows `[1, T, ...]` hold sequences of these lengths."""
    if any(length < 0 for length in lengths):
        raise ConfigError(f"Lengths of packed sequences must not be negative, found {list(lengths)}.")
    for x in packed:
        if x.shape[0] != 1 or x.shape[1] != sum(lengths):
            raise ConfigError(
                f"Packed rows of {len(lengths)} sequences with {sum(lengths)} tokens must have the shape "
                f"[1, {sum(lengths)}, ...], found {list(x.shape)}."
            )


class LinformerEncoderLayer(TransformerEncoderLayer):
    """`TransformerEncoderLayer` with `LinformerAttention`.

    Args:
        d_model: D.
        nhead: N.
        max_sequence_length: see `LinformerAttention`.
        projected_dims: see `LinformerAttention`.
        attention_style: see `LinformerAttention`.
        projection_initializer: see `LinformerAttention`.
        **arguments: those of `TransformerEncoderLayer`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        max_sequence_length: int,
        projected_dims: int,
        attention_style: str = "linformer-shared-heads",
        projection_initializer: InitializerSpec | None = None,
        **arguments: Any,
    ) -> None:
        own = {
            "max_sequence_length": max_sequence_length,
            "projected_dims": projected_dims,
            "attention_style": attention_style,
            "projection_initializer": projection_initializer,
        }
        extra = {**(arguments.pop("extra_attention_params", None) or {}), **own}
        super().__init__(d_model, nhead, attention_module=LinformerAttention, extra_attention_params=extra, **arguments)

    def forward(  # type: ignore[override]
        self,
        src: Tensor,
        src_key_padding_mask: Tensor | None = None,
        lengths: Sequence[int] | Tensor | None = None,
        projection: Tensor | None = None,
    ) -> Tensor:
        """Maps `[B, L, D]`, or packed `[1, T, D]`, to the same shape.

        Args:
            src: `[B, L, D]`, or `[1, T, D]` with `lengths`.
            src_key_padding_mask: `key_padding_mask` of `LinformerAttention`.
            lengths: tokens of each packed sequence.
            projection: the matrix of all layers.
        """

        def attend(x: Tensor) -> Tensor:
            attended = self.self_attn(
                x, x, x, key_padding_mask=src_key_padding_mask, lengths=lengths, projection=projection
            )
            return self.dropout1(attended)

        return self._blocks(src, attend)


class LinformerEncoder(TransformerEncoder):
    """A stack of `LinformerEncoderLayer`; with `linformer-shared-layers` it holds the one matrix of all of them.

    Args:
        encoder_layer: a `LinformerEncoderLayer` to copy; each copy draws parameters of its own.
        num_layers: layers.
        norm: norm of the last layer's output.
        enable_nested_tensor: must be false.
    """

    def __init__(
        self,
        encoder_layer: LinformerEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = False,
    ) -> None:
        super().__init__(encoder_layer, num_layers, norm, enable_nested_tensor)
        attention: Any = encoder_layer.self_attn
        self.projection: nn.Linear | None = None
        if attention.attention_style == "linformer-shared-layers":
            device = attention.proj_q_dense_layer.weight.device
            self.projection = nn.Linear(attention.max_sequence_length, attention.projected_dims, False, device)
            self.initializer = attention.projection_initializer
            self._reset_projection()

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        super().reset_parameters()
        self._reset_projection()

    def _reset_projection(self) -> None:
        if self.projection is not None:
            create_initializer(self.initializer)(self.projection.weight.data)

    def forward(  # type: ignore[override]
        self,
        src: Tensor,
        src_key_padding_mask: Tensor | None = None,
        lengths: Sequence[int] | Tensor | None = None,
        extract_layer_idx: int | None = None,
    ) -> Tensor:
        """Maps `[B, L, D]`, or packed `[1, T, D]`, to the same shape.

        Args:
            src: `[B, L, D]`, or `[1, T, D]` with `lengths`.
            src_key_padding_mask: `key_padding_mask` of `LinformerAttention`.
            lengths: tokens of each packed sequence.
            extract_layer_idx: return the output of that layer, without the last norm.
        """
        projection = None if self.projection is None else self.projection.weight
        x = src
        for layer in self.layers[: last_layer(extract_layer_idx, self.num_layers) + 1]:
            x = layer(x, src_key_padding_mask, lengths, projection)
        return x if self.norm is None or extract_layer_idx is not None else self.norm(x)
