# SPDX-License-Identifier: Apache-2.0
"""Where a token stands: learned and fixed tables, rotary angles, relative and ALiBi biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poptransformer.errors import ConfigError
from poptransformer.nn.initializers import InitializerSpec, create_initializer
from poptransformer.positions import (
    MAX_RELATIVE_POSITION,
    alibi_slopes,
    fixed_positions,
    inverse_frequencies,
    relative_buckets,
)


class LearnedPositionEmbeddingLayer(nn.Module):
    """A learned vector for each position.

    Args:
        max_position_embeddings: positions.
        positional_embedding_size: D.
        pad_token_id: token that `mask_padding_in_positional_embed` looks for.
        position_embedding_offset: rows of the table before the one of position 0.
        position_embeddings_initializer: see `create_initializer`.
        mask_padding_in_positional_embed: padding has a row of its own, before the one of position 0.
        device: where the table lies.
    """

    def __init__(
        self,
        max_position_embeddings: int,
        positional_embedding_size: int,
        pad_token_id: int | None = None,
        position_embedding_offset: int = 0,
        position_embeddings_initializer: InitializerSpec = "uniform",
        mask_padding_in_positional_embed: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if mask_padding_in_positional_embed and pad_token_id is None:
            raise ConfigError("mask_padding_in_positional_embed needs pad_token_id.")
        rows = max_position_embeddings + position_embedding_offset + int(mask_padding_in_positional_embed)
        self.embed = nn.Embedding(rows, positional_embedding_size, device=device)
        self.padding = pad_token_id if mask_padding_in_positional_embed else None
        self.position_embedding_offset = position_embedding_offset
        self.initializer = position_embeddings_initializer
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table anew."""
        create_initializer(self.initializer)(self.embed.weight.data)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, past_length: int = 0) -> Tensor:
        """Returns `[B, L, D]` for ids `[B, L]` at positions from `past_length` on, or at `position_ids` `[B, L]`."""
        if position_ids is None:
            position_ids = torch.arange(past_length, past_length + input_ids.shape[-1], device=input_ids.device)
            if self.padding is not None:
                position_ids = torch.where(input_ids.ne(self.padding), position_ids + 1, 0)
            position_ids = (position_ids + self.position_embedding_offset).expand(input_ids.shape)
        return self.embed(position_ids)


class FixedPositionEmbeddingLayer(nn.Module):
    """Sines and cosines, interleaved (tensor2tensor's timing signal).

    Their frequencies run from `1 / min_timescale` to `min_timescale / max_timescale` inclusive, so they differ from
    the PyTorch tutorial's, which stop one short of it.
    """

    def __init__(
        self,
        max_position_embeddings: int,
        positional_embedding_size: int,
        min_timescale: float = 1.0,
        max_timescale: float = 1.0e4,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        table = fixed_positions(max_position_embeddings, positional_embedding_size, min_timescale, max_timescale)
        self.fpe = nn.Parameter(torch.tensor(table, device=device), requires_grad=False)
        self.max_position_embeddings = max_position_embeddings

    def reset_parameters(self) -> None:
        """Leaves the table as it is."""

    def forward(self, length: int, position_ids: Tensor | None = None, past_length: int = 0) -> Tensor:
        """Returns `[L, D]` for `length` positions from `past_length` on, or `[B, L, D]` for `position_ids` `[B, L]`."""
        if position_ids is not None:
            return self.fpe[position_ids.long()]
        if past_length + length > self.max_position_embeddings:
            raise ConfigError(
                f"The input ends at position {past_length + length}, but max_position_embeddings is "
                f"{self.max_position_embeddings}. Shorten the input or raise max_position_embeddings."
            )
        return self.fpe[past_length : past_length + length]


class RotaryPositionEmbeddingHelper:
    """Rotates pairs of neighbouring columns by their position (RoFormer, https://arxiv.org/abs/2104.09864).

    Args:
        max_position_embeddings: positions.
        rotary_dim: columns of a head that are rotated; an even number.
        base: wavelengths go up to `2 * pi * base`.
        scaling_factor: divides positions.
        pad_fixed_pos_emb: rotate whole heads, the columns from `rotary_dim` on by nothing; the result is the same.
    """

    def __init__(
        self,
        max_position_embeddings: int,
        rotary_dim: int,
        base: float = 10000,
        scaling_factor: float = 1.0,
        pad_fixed_pos_emb: bool = False,
    ) -> None:
        if rotary_dim < 2 or rotary_dim % 2:
            raise ConfigError(f"rotary_dim must be an even number of at least 2, found {rotary_dim}.")
        self.max_position_embeddings = max_position_embeddings
        self.rotary_dim = rotary_dim
        self.base = base
        self.scaling_factor = scaling_factor
        self.pad_fixed_pos_emb = pad_fixed_pos_emb

    def reset_parameters(self) -> None:
        """Has no parameters; beside the other position layers it may be asked."""

    def angles(self, length: int, offset: int, device: torch.device, position_ids: Tensor | None = None) -> Tensor:
        """Returns angles in radians, float32 `[L, rotary_dim / 2]`, or `[B, L, rotary_dim / 2]` for `position_ids`."""
        if offset + length > self.max_position_embeddings and position_ids is None:
            raise ConfigError(
                f"The input ends at position {offset + length}, but max_position_embeddings is "
                f"{self.max_position_embeddings}. Shorten the input or raise max_position_embeddings."
            )
        frequencies = torch.tensor(inverse_frequencies(self.base, self.rotary_dim), device=device)
        positions = torch.arange(offset, offset + length, device=device) if position_ids is None else position_ids
        return (positions.float() / self.scaling_factor)[..., None] * frequencies

    def rotate_tensor(self, x: Tensor, offset: int = 0, position_ids: Tensor | None = None) -> Tensor:
        """Rotates `[B, L, N, H]`, whose first token stands at position `offset`, or at `position_ids` `[B, L]`."""
        angles = self.angles(x.shape[1], offset, x.device, position_ids)[..., None, :]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        rotated, rest = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
        even, odd = rotated[..., ::2], rotated[..., 1::2]
        pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)


class RelativePositionEmbeddingLayer(nn.Module):
    """A learned bias for each head and bucket of distances (T5, https://arxiv.org/abs/1910.10683).

    Args:
        num_heads: N.
        relative_attention_bias: an `nn.Embedding` `[buckets, N]` to share; None makes one.
        num_relative_attention_buckets: buckets.
        max_relative_positions: distances from here on share a bucket.
        bidirectional_relative_attention: half of the buckets are for keys after the query; otherwise those share
            bucket 0.
        relative_attn_bias_initializer: see `create_initializer`.
        device: where the table lies.
    """

    buckets: Tensor

    def __init__(
        self,
        num_heads: int,
        relative_attention_bias: nn.Embedding | None = None,
        num_relative_attention_buckets: int = 32,
        max_relative_positions: int = MAX_RELATIVE_POSITION,
        bidirectional_relative_attention: bool = False,
        relative_attn_bias_initializer: InitializerSpec = "xavier_uniform",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.relative_attention_bias = relative_attention_bias or nn.Embedding(
            num_relative_attention_buckets, num_heads, device=device
        )
        self.max_relative_positions = max_relative_positions
        buckets = relative_buckets(
            num_relative_attention_buckets, max_relative_positions, bidirectional_relative_attention
        )
        self.register_buffer("buckets", torch.tensor(buckets, device=device), persistent=False)
        self.initializer = relative_attn_bias_initializer
        if relative_attention_bias is None:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table anew."""
        create_initializer(self.initializer)(self.relative_attention_bias.weight.data)

    def forward(self, seq_length: int, key_length: int, past_length: int = 0) -> Tensor:
        """Returns biases `[N, L, S]` of L queries from position `past_length` on and S keys from position 0 on."""
        queries = torch.arange(past_length, past_length + seq_length, device=self.buckets.device)
        keys = torch.arange(key_length, device=self.buckets.device)
        farthest = self.max_relative_positions
        distances = (keys[None, :] - queries[:, None]).clamp(-farthest, farthest) + farthest
        return self.relative_attention_bias(self.buckets[distances]).permute(2, 0, 1)


class AlibiPositionEmbeddingLayer(nn.Module):
    """A bias that falls with distance, by a slope for each head (https://arxiv.org/abs/2108.12409).

    Args:
        num_heads: N.
        slopes: `[N, 1]`; None takes the paper's.
        alibi_trainable_slopes: train the slopes; without `slopes` they begin as `slopes_initializer` draws them.
        slopes_initializer: see `create_initializer`.
        scaling_factor: divides the slopes.
        device: where the slopes lie.
    """

    def __init__(
        self,
        num_heads: int,
        slopes: Tensor | None = None,
        alibi_trainable_slopes: bool = False,
        slopes_initializer: InitializerSpec = "xavier_uniform",
        scaling_factor: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        given = alibi_slopes(num_heads) if slopes is None else slopes
        initial = torch.as_tensor(given, dtype=torch.float32, device=device).reshape(num_heads, 1).clone()
        self.slopes = nn.Parameter(initial, requires_grad=alibi_trainable_slopes)
        self.scaling_factor = scaling_factor
        self.initializer = slopes_initializer if alibi_trainable_slopes and slopes is None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws trainable slopes anew; given ones stay."""
        if self.initializer is not None:
            create_initializer(self.initializer)(self.slopes.data)

    def forward(self, seq_length: int, key_length: int, past_length: int = 0) -> Tensor:
        """Returns biases `[N, L, S]` of L queries from position `past_length` on and S keys from position 0 on."""
        queries = torch.arange(past_length, past_length + seq_length, device=self.slopes.device)
        keys = torch.arange(key_length, device=self.slopes.device)
        distances = (keys[None, :] - queries[:, None]).abs()
        return (self.slopes / -self.scaling_factor)[:, :, None] * distances
