# SPDX-License-Identifier: Apache-2.0
"""Positions of the layers API, as graphs: tables that are added, rotations and biases that act in attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding import Embedding
from poptransformer.layers.heads import HeadShare
from poptransformer.parallel import Share, take
from poptransformer.positions import MAX_RELATIVE_POSITION, inverse_frequencies, relative_buckets
from poptransformer.step import Step

Length = ir.Value | int  # int64, without dimensions
# Makes biases `[B, N, L, S]` for a number of slots, int64 without dimensions.
StepBias = Callable[[Graph, ir.Value], ir.Value]


def length_of(graph: Graph, x: ir.Value, axis: int = 1) -> ir.Value:
    """Returns one dimension of `x` as an int64 without dimensions."""
    return ops.squeeze(graph, ops.shape(graph, x, axis, axis + 1), [0])


def consecutive(graph: Graph, start: Length, length: Length) -> ir.Value:
    """Returns `length` integers from `start` on, int64 `[length]`."""
    first, count = (ops.constant(graph, x, np.int64) if isinstance(x, int) else x for x in (start, length))
    return ops.arange(graph, first, ops.add(graph, first, count))


class LearnedPositionEmbeddingLayer(BaseLayer):
    """A learned vector for each position; see `poptransformer.nn.LearnedPositionEmbeddingLayer`."""

    def __init__(
        self,
        context: str | None,
        name: str | None,
        max_position_embeddings: int,
        positional_embedding_size: int,
        pad_token_id: int | None = None,
        position_embedding_offset: int = 0,
        mask_padding_in_positional_embed: bool = False,
    ) -> None:
        super().__init__(context, name)
        if mask_padding_in_positional_embed and pad_token_id is None:
            raise ConfigError("mask_padding_in_positional_embed needs pad_token_id.")
        rows = max_position_embeddings + position_embedding_offset + int(mask_padding_in_positional_embed)
        self.embed = Embedding(self.context, "embed", rows, positional_embedding_size)
        self.padding = pad_token_id if mask_padding_in_positional_embed else None
        self.position_embedding_offset = position_embedding_offset

    def __call__(
        self, graph: Graph, input_ids: ir.Value, position_ids: ir.Value | None = None, past_length: Length = 0
    ) -> ir.Value:
        """Returns `[L, D]`, or `[B, L, D]` where positions differ by row."""
        with graph.nameScope(self.context):
            if position_ids is None:
                position_ids = consecutive(graph, past_length, length_of(graph, input_ids))
                if self.padding is not None:
                    is_padding = ops.equal(graph, input_ids, self.padding)
                    position_ids = ops.where(graph, is_padding, 0, ops.add(graph, position_ids, 1))
                if self.position_embedding_offset:
                    position_ids = ops.add(graph, position_ids, self.position_embedding_offset)
            return self.embed(graph, position_ids)


class FixedPositionEmbeddingLayer(BaseLayer):
    """Sines and cosines, read from the state dict; see `poptransformer.nn.FixedPositionEmbeddingLayer`."""

    def __init__(
        self, context: str | None, name: str | None, max_position_embeddings: int, positional_embedding_size: int
    ) -> None:
        super().__init__(context, name)
        self.table_shape = [max_position_embeddings, positional_embedding_size]

    def collect_bind_layer_weights(self) -> None:
        table = self.get_param_from_state_dict(self.key("fpe"), self.table_shape)
        self.table_id = self.add_initialized_input_tensor(table, self.key("fpe"))

    def __call__(
        self, graph: Graph, input_ids: ir.Value, position_ids: ir.Value | None = None, past_length: Length = 0
    ) -> ir.Value:
        """Returns `[L, D]`, or `[B, L, D]` for `position_ids` `[B, L]`."""
        with graph.nameScope(self.context):
            if position_ids is None:
                position_ids = consecutive(graph, past_length, length_of(graph, input_ids))
            return ops.gather(graph, self.table_id, position_ids)


class RotaryPositionEmbeddingHelper(BaseLayer):
    """Rotates pairs of neighbouring columns; see `poptransformer.nn.RotaryPositionEmbeddingHelper`.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        rotary_dim: columns of a head that are rotated.
        base: base of the wavelengths.
        scaling_factor: divides positions.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        rotary_dim: int,
        base: float = 10000,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__(context, name)
        if rotary_dim < 2 or rotary_dim % 2:
            raise ConfigError(f"rotary_dim must be an even number of at least 2, found {rotary_dim}.")
        self.rotary_dim = rotary_dim
        self.frequencies = inverse_frequencies(base, rotary_dim)
        self.scaling_factor = scaling_factor

    def rotate_tensor(
        self,
        graph: Graph,
        x: ir.Value,
        num_heads: int,
        past_key: ir.Value | None = None,
        step: Step | None = None,
    ) -> ir.Value:
        """Rotates `[B, L, N*H]`.

        Args:
            graph: where the nodes go.
            x: the tokens of all rows come after those of `past_key`, or stand where `step` says.
            num_heads: heads in `x`.
            past_key: `[B, N, P, H]`.
            step: see `MultiheadAttention`.
        """
        columns = None if x.shape is None else x.shape[-1]
        if isinstance(columns, int) and self.rotary_dim > columns // num_heads:
            raise ConfigError(f"rotary_dim is {self.rotary_dim}, but a head has {columns // num_heads} columns.")
        with graph.nameScope(self.context):
            if step is not None:
                cos, sin = step.shared(graph, f"{self.context} rotary", lambda: self._angles(graph, step.position_ids))
            else:
                start = 0 if past_key is None else length_of(graph, past_key, 2)
                angles = self._angles(graph, consecutive(graph, start, length_of(graph, x)))
                size = ops.concat(graph, [ops.shape(graph, x, 0, 2), ops.constant(graph, [len(self.frequencies)])], 0)
                cos, sin = (ops.expand(graph, part, size) for part in angles)
            return ops.rotary_embedding(graph, x, cos, sin, num_heads, self.rotary_dim, interleaved=True)

    def _angles(self, graph: Graph, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines `[..., rotary_dim/2]` for positions `[...]`."""
        numbers = ops.cast(graph, positions, np.float32)
        if self.scaling_factor != 1.0:
            numbers = ops.div(graph, numbers, self.scaling_factor)
        angles = ops.mul(graph, ops.unsqueeze(graph, numbers, [-1]), ops.constant(graph, self.frequencies))
        return ops.cos(graph, angles), ops.sin(graph, angles)


class RelativePositionEmbeddingLayer(BaseLayer):
    """A learned bias for each head and bucket of distances; see `poptransformer.nn.RelativePositionEmbeddingLayer`."""

    def __init__(
        self,
        context: str | None,
        name: str | None,
        num_heads: int,
        num_relative_attention_buckets: int = 32,
        max_relative_positions: int = MAX_RELATIVE_POSITION,
        bidirectional_relative_attention: bool = False,
    ) -> None:
        super().__init__(context, name)
        self.relative_attention_bias = Embedding(
            *(self.context, "relative_attention_bias", num_relative_attention_buckets, num_heads),
            strategy=HeadShare(self.context, num_heads).strategy,
        )
        self.farthest = max_relative_positions
        self.buckets = relative_buckets(
            num_relative_attention_buckets, max_relative_positions, bidirectional_relative_attention
        )

    def __call__(self, graph: Graph, seq_length: Length, key_length: Length, past_length: Length = 0) -> ir.Value:
        """Returns biases `[N, L, S]` of L queries from position `past_length` on and S keys from position 0 on."""
        with graph.nameScope(self.context):
            return self._biases(graph, _distances(graph, seq_length, key_length, past_length), [2, 0, 1])

    def in_step(self, graph: Graph, step: Step, slots: ir.Value) -> ir.Value:
        """Returns biases `[B, N, L, S]` of a step's tokens and all slots of its caches."""
        with graph.nameScope(self.context):
            return self._biases(graph, _step_distances(graph, step, slots), [0, 3, 1, 2])

    def _biases(self, graph: Graph, distances: ir.Value, heads_first: list[int]) -> ir.Value:
        near = ops.maximum(graph, ops.minimum(graph, distances, self.farthest), -self.farthest)
        rows = ops.gather(graph, ops.constant(graph, self.buckets), ops.add(graph, near, self.farthest))
        return ops.transpose(graph, self.relative_attention_bias(graph, rows), heads_first)


class AlibiPositionEmbeddingLayer(BaseLayer):
    """A bias that falls with distance; see `poptransformer.nn.AlibiPositionEmbeddingLayer`."""

    def __init__(self, context: str | None, name: str | None, num_heads: int, scaling_factor: float = 1.0) -> None:
        super().__init__(context, name)
        self.heads = HeadShare(self.context, num_heads)
        self.scaling_factor = scaling_factor

    def collect_bind_layer_weights(self) -> None:
        slopes = self.get_param_from_state_dict(self.key("slopes"), [self.heads.total, 1])
        slopes = take(slopes, self.heads.share, Share.whole(1))
        self.slopes_id = self.add_initialized_input_tensor(slopes, self.key("slopes"))

    def __call__(self, graph: Graph, seq_length: Length, key_length: Length, past_length: Length = 0) -> ir.Value:
        """Returns biases `[N, L, S]` of L queries from position `past_length` on and S keys from position 0 on."""
        with graph.nameScope(self.context):
            return self._biases(graph, _distances(graph, seq_length, key_length, past_length))

    def in_step(self, graph: Graph, step: Step, slots: ir.Value) -> ir.Value:
        """Returns biases `[B, N, L, S]` of a step's tokens and all slots of its caches."""
        with graph.nameScope(self.context):
            return self._biases(graph, ops.unsqueeze(graph, _step_distances(graph, step, slots), [1]))

    def _biases(self, graph: Graph, distances: ir.Value) -> ir.Value:
        slopes = ops.unsqueeze(graph, ops.div(graph, self.slopes_id, -self.scaling_factor), [2])
        return ops.mul(graph, slopes, ops.cast(graph, ops.absolute(graph, distances), np.float32))


def _distances(graph: Graph, seq_length: Length, key_length: Length, past_length: Length) -> ir.Value:
    """Key minus query, int64 `[L, S]`."""
    queries = ops.unsqueeze(graph, consecutive(graph, past_length, seq_length), [1])
    return ops.sub(graph, ops.unsqueeze(graph, consecutive(graph, 0, key_length), [0]), queries)


def _step_distances(graph: Graph, step: Step, slots: ir.Value) -> ir.Value:
    """Slot minus position of the token, int64 `[B, L, S]`."""
    keys = ops.unsqueeze(graph, consecutive(graph, 0, slots), [0, 1])
    return ops.sub(graph, keys, ops.unsqueeze(graph, step.position_ids, [2]))
