# SPDX-License-Identifier: Apache-2.0
"""What the attention layers that train and the ones that build graphs accept, so that both refuse the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

from poptransformer.build import check_choice
from poptransformer.errors import ConfigError

ATTENTION_TYPES = ("scaled_dot_product", "dot_product", "scaled_cosine")
LINFORMER_STYLES = ("linformer-shared-heads", "linformer-shared-kv", "linformer-shared-layers")
MAX_COSINE_SCALE = math.log(100.0)  # of `scaled_cosine`, whose learned scale is a logarithm (Swin V2)


def check_attention(
    embed_dim: int,
    num_heads: int,
    inner_dim: int | None,
    batch_first: bool,
    add_bias_kv: bool,
    add_zero_attn: bool,
    attention_type: str,
) -> None:
    """Checks the arguments of a `MultiheadAttention`.

    Raises:
        ConfigError: heads do not divide the columns, an unknown type, or one of torch's options that the layers API
            has never had.
    """
    check_choice("attention_type", attention_type, ATTENTION_TYPES)
    if num_heads < 1 or embed_dim % num_heads or (inner_dim or embed_dim) % num_heads:
        raise ConfigError(
            f"embed_dim {embed_dim} and inner_dim {inner_dim or embed_dim} must be multiples of num_heads {num_heads}."
        )
    if not batch_first:
        raise ConfigError("batch_first must be true: all layers take [batch, sequence, features].")
    for name, value in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
        if value:
            raise ConfigError(f"{name} must be false: these layers add no rows to keys and values.")


def score_scale(head_dim: int, attention_type: str, scale_qk_dot_by_d: bool) -> float:
    """Returns the factor on products of queries and keys; layers multiply it by `1 / (layer_idx + 1)` if asked."""
    if attention_type != "scaled_dot_product":
        return 1.0
    return 1.0 / head_dim if scale_qk_dot_by_d else head_dim**-0.5


def check_linformer(max_sequence_length: int, projected_dims: int, attention_style: str, attention_type: str) -> None:
    """Checks the arguments of a `LinformerAttention` that `MultiheadAttention` has not.

    Raises:
        ConfigError: an unknown style, sizes that are no sizes, or cosine scores, which projected keys do not have.
    """
    check_choice("attention_style", attention_style, LINFORMER_STYLES)
    if not 1 <= projected_dims <= max_sequence_length:
        raise ConfigError(
            f"projected_dims must be from 1 to max_sequence_length {max_sequence_length}, found {projected_dims}."
        )
    if attention_type == "scaled_cosine":
        raise ConfigError("attention_type scaled_cosine compares single keys, which Linformer mixes; choose another.")


def check_no_positions(given: Mapping[str, object]) -> None:
    """Raises for masks and biases by the position of a key: after Linformer's projection, keys have none."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"Linformer attention takes no {name}: projected keys stand for no single position.")


def check_projection(attention_style: str, has_projection: bool) -> None:
    """Raises unless a matrix is passed to the layers that share one, and to those alone."""
    shares = attention_style == "linformer-shared-layers"
    if shares != has_projection:
        needs = "needs the projection that layers share" if shares else "has projections of its own and takes none"
        raise ConfigError(f"attention_style {attention_style} {needs}; a LinformerEncoder passes it on.")
