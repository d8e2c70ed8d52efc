# SPDX-License-Identifier: Apache-2.0
"""Embeddings of tokens, positions and segments of the layers API, as a graph."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding import Embedding
from poptransformer.layers.embedding_positions import (
    AlibiPositionEmbeddingLayer,
    FixedPositionEmbeddingLayer,
    LearnedPositionEmbeddingLayer,
    Length,
    RelativePositionEmbeddingLayer,
    RotaryPositionEmbeddingHelper,
    StepBias,
)
from poptransformer.layers.training_only import check_training_only
from poptransformer.positions import check_positions
from poptransformer.step import Step


class EmbeddingLayer(BaseLayer):
    """`poptransformer.nn.EmbeddingLayer` as a graph, with the weights of its state dict.

    Tables that the state dict holds are read from it, fixed positions and ALiBi's slopes too: `min_timescale`,
    `max_timescale` and `alibi_slopes` need not be given again. Replicas divide the tokens' table, and biases by heads.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        vocab_size: see `poptransformer.nn.EmbeddingLayer`, as for all that follow.
        embedding_size: D.
        pad_token_id: the token that `mask_padding_in_positional_embed` looks for.
        position_embedding_type: learned, fixed, rotary, relative, alibi or None.
        max_position_embeddings: positions.
        positional_embedding_size: columns of the position table; None is D.
        position_embedding_offset: `learned`: rows before the one of position 0.
        min_timescale: has no effect here.
        max_timescale: has no effect here.
        mask_padding_in_positional_embed: `learned`: padding has a row of its own.
        num_heads: `relative` and `alibi`: N.
        num_relative_attention_buckets: `relative`: buckets of distances.
        bidirectional: `relative`: tell keys before the query from keys after it.
        rotary_dim: `rotary`: columns of a head that are rotated.
        rope_theta: `rotary`: base of the wavelengths.
        alibi_slopes: has no effect here.
        pos_scaling_factor: `rotary` and `alibi`: divides distances.
        num_segments: segments; None for no table.
        segment_embedding_size: columns of the segment table; None is D.
        **training_only: arguments that have no effect here.

    Raises:
        ConfigError: an argument is missing for the type, or contradicts it.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        vocab_size: int,
        embedding_size: int,
        pad_token_id: int | None = None,
        *,
        position_embedding_type: str | None = "learned",
        max_position_embeddings: int | None = None,
        positional_embedding_size: int | None = None,
        position_embedding_offset: int = 0,
        min_timescale: float = 1.0,
        max_timescale: float = 1.0e4,
        mask_padding_in_positional_embed: bool = False,
        num_heads: int | None = None,
        num_relative_attention_buckets: int = 32,
        bidirectional: bool = False,
        rotary_dim: int | None = None,
        rope_theta: float = 10000,
        alibi_slopes: object = None,
        pos_scaling_factor: float = 1.0,
        num_segments: int | None = None,
        segment_embedding_size: int | None = None,
        **training_only: object,
    ) -> None:
        super().__init__(context, name)
        check_training_only(type(self).__name__, training_only)
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
        self.sizes = {
            "positional_embedding_size": positional_embedding_size or embedding_size,
            "segment_embedding_size": segment_embedding_size or embedding_size,
        }
        self.word_embeddings = Embedding(self.context, "word_embeddings", vocab_size, embedding_size, "vocabulary")
        self.position_embeddings: LearnedPositionEmbeddingLayer | FixedPositionEmbeddingLayer | None = None
        self.bias_helper: RelativePositionEmbeddingLayer | AlibiPositionEmbeddingLayer | None = None
        self.rope_helper: RotaryPositionEmbeddingHelper | None = None
        self.segment_embeddings: Embedding | None = None
        length, columns = max_position_embeddings or 0, self.sizes["positional_embedding_size"]
        table, helper = (self.context, "position_embeddings"), (self.context, "position_embed_helper")
        if position_embedding_type == "learned":
            self.position_embeddings = LearnedPositionEmbeddingLayer(
                *table, length, columns, pad_token_id, position_embedding_offset, mask_padding_in_positional_embed
            )
        elif position_embedding_type == "fixed":
            self.position_embeddings = FixedPositionEmbeddingLayer(*table, length, columns)
        elif position_embedding_type == "rotary":
            self.rope_helper = RotaryPositionEmbeddingHelper(*helper, rotary_dim or 0, rope_theta, pos_scaling_factor)
        elif position_embedding_type == "relative":
            self.bias_helper = RelativePositionEmbeddingLayer(
                *helper,
                num_heads or 0,
                num_relative_attention_buckets,
                bidirectional_relative_attention=bidirectional,
            )
        elif position_embedding_type == "alibi":
            self.bias_helper = AlibiPositionEmbeddingLayer(*helper, num_heads or 0, pos_scaling_factor)
        if num_segments:
            size = self.sizes["segment_embedding_size"]
            self.segment_embeddings = Embedding(self.context, "segment_embeddings", num_segments, size)

    def __call__(
        self,
        graph: Graph,
        input_ids: ir.Value,
        position_ids: ir.Value | None = None,
        segment_ids: ir.Value | None = None,
        past_length: Length = 0,
    ) -> ir.Value:
        """Returns `[B, L, D]` for ids `[B, L]`; see `poptransformer.nn.EmbeddingLayer`."""
        with graph.nameScope(self.context):
            x = self.word_embeddings(graph, input_ids)
            if self.position_embeddings is not None:
                self._check_columns("positional_embedding_size")
                x = ops.add(graph, x, self.position_embeddings(graph, input_ids, position_ids, past_length))
            if segment_ids is not None and self.segment_embeddings is not None:
                self._check_columns("segment_embedding_size")
                x = ops.add(graph, x, self.segment_embeddings(graph, segment_ids))
            return x

    def _check_columns(self, name: str) -> None:
        if self.sizes[name] != self.embedding_size:
            raise ConfigError(
                f"{name} is {self.sizes[name]}, but embedding_size is {self.embedding_size}: they cannot be added. "
                "Project and add the parts by hand."
            )

    def compute_position_bias(
        self, graph: Graph, seq_length: Length, key_length: Length, past_length: Length = 0
    ) -> ir.Value | None:
        """Returns `[N, L, S]` to add to the scores of L queries, S keys; None but for `relative` and `alibi`.

        With several replicas each gets those of its own heads.
        """
        if self.bias_helper is None:
            return None
        return self.bias_helper(graph, seq_length, key_length, past_length)

    def get_step_bias(self, step: Step) -> StepBias | None:
        """Returns what layers with `step` take as their position bias; None but for `relative` and `alibi`."""
        helper = self.bias_helper
        if helper is None:
            return None
        name = f"{helper.context} bias"
        return lambda graph, slots: step.shared(graph, name, lambda: helper.in_step(graph, step, slots))

    def get_rope_helper(self) -> RotaryPositionEmbeddingHelper | None:
        """Returns what rotates queries and keys; None but for `rotary`."""
        return self.rope_helper
