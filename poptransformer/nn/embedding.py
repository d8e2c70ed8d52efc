# SPDX-License-Identifier: Apache-2.0
"""Embeddings of tokens, positions and segments in one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poptransformer.errors import ConfigError
from poptransformer.nn.initializers import InitializerSpec, create_initializer
from poptransformer.nn.positions import (
    AlibiPositionEmbeddingLayer,
    FixedPositionEmbeddingLayer,
    LearnedPositionEmbeddingLayer,
    RelativePositionEmbeddingLayer,
    RotaryPositionEmbeddingHelper,
)
from poptransformer.positions import check_positions


class EmbeddingLayer(nn.Module):
    """Vectors of tokens, plus those of positions and segments.

    `learned` and `fixed` positions are added here. The others act in attention: pass `get_rope_helper()` or
    `compute_position_bias()` to the layers.

    Args:
        vocab_size: V.
        embedding_size: D.
        pad_token_id: its vector is zero and does not learn.
        initializer: of the relative bias and of trainable ALiBi slopes; see `create_initializer`.
        embeddings_initializer: of the token table.
        device: where parameters lie.
        position_embedding_type: learned, fixed, rotary, relative, alibi or None.
        max_position_embeddings: positions; needed for every type.
        positional_embedding_size: columns of the position table; None is D.
        position_embedding_offset: `learned`: rows before the one of position 0.
        position_embeddings_initializer: `learned`: of the table.
        min_timescale: `fixed`: shortest wavelength, in `2 * pi` tokens.
        max_timescale: `fixed`: longest wavelength.
        mask_padding_in_positional_embed: `learned`: padding has a row of its own.
        num_heads: `relative` and `alibi`: N.
        relative_attention_bias: `relative`: a table to share with another layer.
        num_relative_attention_buckets: `relative`: buckets of distances.
        bidirectional: `relative`: tell keys before the query from keys after it.
        rotary_dim: `rotary`: columns of a head that are rotated.
        rope_theta: `rotary`: base of the wavelengths.
        pad_rope: `rotary`: rotate whole heads; the result is the same.
        alibi_slopes: `alibi`: `[N, 1]`; None takes the paper's.
        alibi_trainable_slopes: `alibi`: train the slopes.
        pos_scaling_factor: `rotary` and `alibi`: divides distances.
        num_segments: segments; None makes no table.
        segment_embedding_size: columns of the segment table; None is D.
        segment_embeddings_initializer: of the segment table.

    Raises:
        ConfigError: an argument is missing for the type, or contradicts it.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        pad_token_id: int | None = None,
        initializer: InitializerSpec = "xavier_uniform",
        embeddings_initializer: InitializerSpec = "uniform",
        device: torch.device | str | None = None,
        position_embedding_type: str | None = "learned",
        max_position_embeddings: int | None = None,
        positional_embedding_size: int | None = None,
        position_embedding_offset: int = 0,
        position_embeddings_initializer: InitializerSpec = "uniform",
        min_timescale: float = 1.0,
        max_timescale: float = 1.0e4,
        mask_padding_in_positional_embed: bool = False,
        num_heads: int | None = None,
        relative_attention_bias: nn.Embedding | None = None,
        num_relative_attention_buckets: int = 32,
        bidirectional: bool = False,
        rotary_dim: int | None = None,
        rope_theta: float = 10000,
        pad_rope: bool = False,
        alibi_slopes: Tensor | None = None,
        alibi_trainable_slopes: bool = False,
        pos_scaling_factor: float = 1.0,
        num_segments: int | None = None,
        segment_embedding_size: int | None = None,
        segment_embeddings_initializer: InitializerSpec = "uniform",
    ) -> None:
        super().__init__()
        check_positions(
            position_embedding_type,
            max_position_embeddings,
            position_embedding_offset,
            mask_padding_in_positional_embed,
            num_heads,
            rotary_dim,
            pos_scaling_factor,
        )
        self.embedding_size = embedding_size
        self.positional_embedding_size = positional_embedding_size or embedding_size
        self.segment_embedding_size = segment_embedding_size or embedding_size
        self.position_embedding_type = position_embedding_type
        self.max_position_embeddings = max_position_embeddings
        self.pad_token_id = pad_token_id
        self.embeddings_initializer = embeddings_initializer
        self.segment_embeddings_initializer = segment_embeddings_initializer
        self.word_embeddings = nn.Embedding(vocab_size, embedding_size, padding_idx=pad_token_id, device=device)
        self.position_embeddings: nn.Module | None = None
        self.position_embed_helper: nn.Module | RotaryPositionEmbeddingHelper | None = None
        length = max_position_embeddings or 0
        if position_embedding_type == "learned":
            self.position_embeddings = LearnedPositionEmbeddingLayer(
                length,
                self.positional_embedding_size,
                pad_token_id,
                position_embedding_offset,
                position_embeddings_initializer,
                mask_padding_in_positional_embed,
                device,
            )
        elif position_embedding_type == "fixed":
            self.position_embeddings = FixedPositionEmbeddingLayer(
                length, self.positional_embedding_size, min_timescale, max_timescale, device
            )
        elif position_embedding_type == "rotary":
            self.position_embed_helper = RotaryPositionEmbeddingHelper(
                length, rotary_dim or 0, rope_theta, pos_scaling_factor, pad_rope
            )
        elif position_embedding_type == "relative":
            self.position_embed_helper = RelativePositionEmbeddingLayer(
                num_heads or 0,
                relative_attention_bias,
                num_relative_attention_buckets,
                bidirectional_relative_attention=bidirectional,
                relative_attn_bias_initializer=initializer,
                device=device,
            )
        elif position_embedding_type == "alibi":
            self.position_embed_helper = AlibiPositionEmbeddingLayer(
                num_heads or 0, alibi_slopes, alibi_trainable_slopes, initializer, pos_scaling_factor, device
            )
        self.segment_embeddings = (
            nn.Embedding(num_segments, self.segment_embedding_size, device=device) if num_segments else None
        )
        self._reset_tables()

    def reset_parameters(self) -> None:
        """Draws all tables anew."""
        self._reset_tables()
        for part in (self.position_embeddings, self.position_embed_helper):
            if part is not None:
                part.reset_parameters()  # type: ignore[operator]

    def _reset_tables(self) -> None:
        create_initializer(self.embeddings_initializer)(self.word_embeddings.weight.data)
        if self.segment_embeddings is not None:
            create_initializer(self.segment_embeddings_initializer)(self.segment_embeddings.weight.data)
        if self.pad_token_id is not None:
            self.word_embeddings.weight.data[self.pad_token_id].zero_()

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the token table."""
        return self.word_embeddings

    def set_input_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replaces the token table."""
        self.word_embeddings = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_length: int = 0,
    ) -> Tensor:
        """Returns `[B, L, D]`.

        Args:
            input_ids: integers `[B, L]`.
            position_ids: integers `[B, L]`; None counts from `past_length`.
            segment_ids: integers `[B, L]`; None adds no segments.
            past_length: tokens before these.

        Raises:
            ConfigError: a table has other columns than D; project and add the parts by hand then.
        """
        x = self.compute_token_embeddings(input_ids)
        positions = self.compute_positional_embeddings(input_ids, position_ids, past_length)
        if positions is not None:
            self._check_columns("positional_embedding_size", self.positional_embedding_size)
            x = x + positions
        if segment_ids is not None and self.segment_embeddings is not None:
            self._check_columns("segment_embedding_size", self.segment_embedding_size)
            x = x + self.segment_embeddings(segment_ids)
        return x

    def _check_columns(self, name: str, size: int) -> None:
        if size != self.embedding_size:
            raise ConfigError(
                f"{name} is {size}, but embedding_size is {self.embedding_size}: they cannot be added. Project "
                "what compute_token_embeddings, compute_positional_embeddings and compute_segment_embeddings give."
            )

    def compute_token_embeddings(self, input_ids: Tensor) -> Tensor:
        """Returns `[B, L, D]` for ids `[B, L]`."""
        return self.word_embeddings(input_ids)

    def compute_positional_embeddings(
        self, input_ids: Tensor, position_ids: Tensor | None = None, past_length: int = 0
    ) -> Tensor | None:
        """Returns the vectors of positions, `[L, D]` or `[B, L, D]`; None where they act in attention."""
        if position_ids is not None and position_ids.shape != input_ids.shape:
            raise ConfigError(
                f"position_ids have shape {list(position_ids.shape)}, but input_ids {list(input_ids.shape)}."
            )
        if self.position_embedding_type == "learned":
            return self.position_embeddings(input_ids, position_ids, past_length)  # type: ignore[misc]
        if self.position_embedding_type == "fixed":
            return self.position_embeddings(input_ids.shape[-1], position_ids, past_length)  # type: ignore[misc]
        return None

    def compute_segment_embeddings(self, segment_ids: Tensor | None) -> Tensor | None:
        """Returns the vectors of segments `[B, L, D]`; None where there is no table or no ids."""
        if segment_ids is None or self.segment_embeddings is None:
            return None
        return self.segment_embeddings(segment_ids)

    def compute_position_bias(self, seq_length: int, key_length: int, past_length: int = 0) -> Tensor | None:
        """Returns `[N, L, S]` to add to the scores of L queries, S keys; None but for `relative` and `alibi`."""
        if self.position_embedding_type not in ("relative", "alibi"):
            return None
        return self.position_embed_helper(seq_length, key_length, past_length)  # type: ignore[misc, operator]

    def get_rope_helper(self) -> RotaryPositionEmbeddingHelper | None:
        """Returns what rotates queries and keys; None but for `rotary`."""
        helper = self.position_embed_helper
        return helper if isinstance(helper, RotaryPositionEmbeddingHelper) else None
