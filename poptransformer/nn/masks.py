# SPDX-License-Identifier: Apache-2.0
"""Attention masks. 1 means masked; with `multiply_neg_inf` the ones become the lowest number of the type, to be added.

The default type is float16, as in Cerebras Model Zoo. Layers cast a mask to the type they compute in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poptransformer.errors import ConfigError


def _scaled(mask: Tensor, multiply_neg_inf: bool) -> Tensor:
    return mask * torch.finfo(mask.dtype).min if multiply_neg_inf else mask


def _with_four_dimensions(mask: Tensor) -> Tensor:
    """`[B, S]` to `[B, 1, 1, S]`, `[B, L, S]` to `[B, 1, L, S]`; four dimensions stay."""
    if mask.ndim == 2:
        return mask[:, None, None, :]
    if mask.ndim == 3:
        return mask[:, None]
    if mask.ndim != 4:
        raise ConfigError(f"A key padding mask has 2, 3 or 4 dimensions, found shape {list(mask.shape)}.")
    return mask


def make_key_padding_mask_broadcastable(
    key_padding_mask: Tensor,
    dtype: torch.dtype | None = None,
    revert_mask: bool = True,
    multiply_neg_inf: bool = True,
) -> Tensor:
    """Shapes a key padding mask so that it broadcasts against scores `[B, N, L, S]`.

    Args:
        key_padding_mask: ones and zeros `[B, S]`, `[B, L, S]` or `[B, N, L, S]`.
        dtype: of the result; None is float16.
        revert_mask: ones are tokens to keep, and become masked zeros.
        multiply_neg_inf: times the type's lowest number.
    """
    mask = key_padding_mask.to(dtype or torch.float16)
    return _scaled(_with_four_dimensions(1.0 - mask if revert_mask else mask), multiply_neg_inf)


def create_broadcasted_autoregressive_mask(
    batch_size: int,
    num_heads: int,
    tgt_seq_length: int,
    attention_span: Tensor | None = None,
    sliding_window_length: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float16,
    multiply_neg_inf: bool = True,
) -> Tensor:
    """Masks the future, and what `attention_span` or the window leaves out; `[B, N, L, L]`.

    Args:
        batch_size: B.
        num_heads: N.
        tgt_seq_length: L.
        attention_span: `[B, L]`, for each key the number of later queries that see it. So several sequences share a
            row: the last key of a sequence has span 0.
        sliding_window_length: a query sees itself and that many tokens before it.
        device: of the result.
        dtype: of the result.
        multiply_neg_inf: times the type's lowest number.

    Raises:
        ConfigError: both a span and a window.
    """
    if attention_span is not None and sliding_window_length is not None:
        raise ConfigError("attention_span and sliding_window_length exclude each other; give one of them.")
    positions = torch.arange(tgt_seq_length, device=device)
    age = positions[:, None] - positions[None, :]  # of a key, seen from a query
    masked = (age < 0).expand(batch_size, num_heads, -1, -1)
    if attention_span is not None:
        masked = masked | (age > attention_span.to(positions.device)[:, None, None, :])
    if sliding_window_length is not None:
        masked = masked | (age > sliding_window_length)
    return _scaled(masked.to(dtype), multiply_neg_inf)


# The name it had in release 1.6.
create_autoregressive_mask = create_broadcasted_autoregressive_mask


def create_2D_autoregressive_mask(  # noqa: N802 - the name of the layers API
    src_sequence_length: int,
    target_sequence_length: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Ones above the diagonal, `[src_sequence_length, target_sequence_length]`; float16 by default."""
    return create_2D_full_mask(src_sequence_length, target_sequence_length, dtype, device).triu(diagonal=1)


def create_2D_full_mask(  # noqa: N802 - the name of the layers API
    src_sequence_length: int,
    target_sequence_length: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Ones everywhere, `[src_sequence_length, target_sequence_length]`; float16 by default."""
    return torch.ones(src_sequence_length, target_sequence_length, dtype=dtype or torch.float16, device=device)


def make_sparse_mask_broadcastable(
    sparse_mask: Tensor,
    key_padding_mask: Tensor,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revert_mask: bool = True,
    multiply_neg_inf: bool = True,
) -> Tensor:
    """Repeats a fixed sparse mask `[L, S]` for every row of a batch.

    Args:
        sparse_mask: ones and zeros `[L, S]`.
        key_padding_mask: `[B, S]`, `[B, L, S]` or `[B, N, L, S]`; only its shape counts here, layers take it by itself.
        dtype: of the result; None is float16.
        device: of the result; None is the padding mask's.
        revert_mask: ones of `sparse_mask` are tokens to keep, and become masked zeros.
        multiply_neg_inf: times the type's lowest number.
    """
    mask = sparse_mask.to(dtype=dtype or torch.float16, device=device or key_padding_mask.device)
    mask, _ = torch.broadcast_tensors(1.0 - mask if revert_mask else mask, _with_four_dimensions(key_padding_mask))
    return _scaled(mask, multiply_neg_inf)


def get_extended_attention_mask(
    attention_mask: Tensor,
    input_shape: Sequence[int] | None = None,
    causal: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Turns a mask of tokens to keep into one to add, `[B, 1, 1 or L, S]`.

    Args:
        attention_mask: ones are tokens to keep, `[B, S]` or `[B, L, S]`.
        input_shape: `(B, L)`, needed where `causal`; S may exceed L by tokens that came before.
        causal: mask the future too; only for `[B, S]`.
        device: of the result; None is the mask's.
        dtype: of the result; None is float16.

    Raises:
        ConfigError: another number of dimensions, or `causal` without `input_shape`.
    """
    if attention_mask.ndim not in (2, 3):
        raise ConfigError(f"attention_mask must be [B, S] or [B, L, S], found shape {list(attention_mask.shape)}.")
    masked = _with_four_dimensions(1.0 - attention_mask.to(dtype=dtype or torch.float16, device=device))
    if causal and attention_mask.ndim == 2:
        if input_shape is None:
            raise ConfigError("A causal mask needs input_shape, the rows and tokens of the input.")
        length, total = input_shape[1], masked.shape[-1]
        future = torch.ones(length, total, dtype=masked.dtype, device=masked.device).triu(total - length + 1)
        masked = torch.maximum(masked, future)
    return _scaled(masked, multiply_neg_inf=True)
