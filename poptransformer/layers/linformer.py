# SPDX-License-Identifier: Apache-2.0
"""Linformer of `poptransformer.nn`, as graphs: padded batches, or packed rows that compute no padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.attention_rules import check_linformer, check_no_positions, check_projection
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.multihead_attention import MultiheadAttention
from poptransformer.layers.transformer_encoder import (
    LayerFactory,
    TransformerEncoder,
    TransformerEncoderLayer,
)

Matrices = tuple[ir.Value, ir.Value]


class LinformerProjection(BaseLayer):
    """A matrix `[k, n]` that keys or values are multiplied by, from the left.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        max_sequence_length: n.
        projected_dims: k.
    """

    def __init__(self, context: str | None, name: str | None, max_sequence_length: int, projected_dims: int) -> None:
        super().__init__(context, name)
        self.shape = [projected_dims, max_sequence_length]

    def collect_bind_layer_weights(self) -> None:
        weight = self.get_param_from_state_dict(self.key("weight"), self.shape)
        self.weight_id = self.add_initialized_input_tensor(weight, self.key("weight"))


class LinformerAttention(MultiheadAttention):
    """`poptransformer.nn.LinformerAttention` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        embed_dim: see `poptransformer.nn.LinformerAttention`, as for all that follow.
        num_heads: N.
        max_sequence_length: n.
        projected_dims: k.
        attention_style: which matrices are shared.
        **arguments: those of `MultiheadAttention`.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        embed_dim: int,
        num_heads: int,
        max_sequence_length: int,
        projected_dims: int,
        attention_style: str = "linformer-shared-heads",
        **arguments: Any,
    ) -> None:
        check_linformer(
            max_sequence_length, projected_dims, attention_style, arguments.get("attention_type", "scaled_dot_product")
        )
        super().__init__(context, name, embed_dim, num_heads, **arguments)
        self.attention_style = attention_style
        self.projected_dims = projected_dims
        sizes = (max_sequence_length, projected_dims)
        if attention_style != "linformer-shared-layers":
            self.proj_e = LinformerProjection(self.context, "proj_e", *sizes)
        if attention_style == "linformer-shared-heads":
            self.proj_f = LinformerProjection(self.context, "proj_f", *sizes)

    def __call__(  # type: ignore[override]
        self,
        graph: Graph,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        attn_mask: None = None,
        key_padding_mask: ir.Value | None = None,
        position_bias: None = None,
        rotary_position_embedding_helper: None = None,
        lengths: ir.Value | None = None,
        projection: ir.Value | None = None,
        layer_idx: int | None = None,
    ) -> ir.Value:
        """Returns what `poptransformer.nn.LinformerAttention` does; `lengths` are int64 `[B]`.

        Rows of more than n tokens, and lengths that are not those of the packed rows, stop the run with an error.
        """
        check_no_positions(
            {"attn_mask": attn_mask, "position_bias": position_bias}
            | {"rotary_position_embedding_helper": rotary_position_embedding_helper}
        )
        if lengths is not None and key_padding_mask is not None:
            raise ConfigError("Packed rows have no padding; give lengths or key_padding_mask, not both.")
        with graph.nameScope(self.context):
            matrices = self._matrices(projection)
            query = self.proj_q_dense_layer(graph, q)
            key, value = self.proj_k_dense_layer(graph, k), self.proj_v_dense_layer(graph, v)
            if lengths is not None:
                attended = self._packed_attention(graph, (query, key, value), matrices, lengths, layer_idx)
            else:
                if key_padding_mask is not None:
                    padding = ops.unsqueeze(graph, ops.cast(graph, key_padding_mask, np.bool_), [2])
                    key, value = (ops.where(graph, padding, 0.0, x) for x in (key, value))
                attended = self._projected_attention(graph, query, key, value, matrices, layer_idx)
            return self.proj_output_dense_layer(graph, attended)

    def _matrices(self, projection: ir.Value | None) -> Matrices:
        """E and F, `[k, n]`."""
        check_projection(self.attention_style, projection is not None)
        if projection is not None:
            return projection, projection
        first = self.proj_e.weight_id
        return first, self.proj_f.weight_id if self.attention_style == "linformer-shared-heads" else first

    def _projected_attention(
        self,
        graph: Graph,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        matrices: Matrices,
        layer_idx: int | None,
    ) -> ir.Value:
        """Attended values `[B, L, N*H]` of `[B, L, N*H]` and `[B, S, N*H]`."""
        length = ops.shape(graph, key, 1, 2)
        columns: dict[str | None, ir.Value] = {}  # of E and F, cut to the row
        for matrix in matrices:
            if matrix.name not in columns:
                cut = ops.slice(graph, matrix, [0], length, [1], [1])
                # Shape inference knows nothing of a slice that ends where data says; this tells it what remains.
                columns[matrix.name] = ops.reshape(graph, cut, [self.projected_dims, -1])
        key, value = (
            ops.matmul(graph, columns[matrix.name], x) for matrix, x in zip(matrices, (key, value), strict=True)
        )
        query, key, value = (self._heads(graph, x) for x in (query, key, value))
        weights = self._weights(graph, query, key, None, layer_idx)
        return self._side_by_side(graph, ops.matmul(graph, weights, value))

    def _packed_attention(
        self,
        graph: Graph,
        packed: tuple[ir.Value, ...],
        matrices: Matrices,
        lengths: ir.Value,
        layer_idx: int | None,
    ) -> ir.Value:
        """The same of each sequence of packed rows `[1, T, N*H]`, in a loop; no padding is made or computed."""
        columns = self.num_heads * self.head_dim
        nothing = ops.expand(graph, ops.constant(graph, 0.0), [1, 0, columns])
        start = ir.Value(name=graph.unique_name("start"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
        done = ir.Value(
            name=graph.unique_name("done"), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, None, columns])
        )
        number = ir.Value(name=graph.unique_name("number"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        goes_on = ir.Value(name=graph.unique_name("goes_on"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))

        one, width = ops.constant(graph, [1]), ops.constant(graph, [columns])

        def attend(number: ir.Value, goes_on: ir.Value, start: ir.Value, done: ir.Value) -> list[ir.Value]:
            length = ops.unsqueeze(graph, ops.gather(graph, lengths, number), [0])
            end = ops.add(graph, start, length)
            query, key, value = (ops.slice(graph, x, start, end, [1], [1]) for x in packed)
            # A slice beyond the end is shorter without a word; this reshape says so.
            query = ops.reshape(graph, query, ops.concat(graph, [one, length, width], 0))
            attended = self._projected_attention(graph, query, key, value, matrices, layer_idx)
            return [ops.identity(graph, goes_on), end, ops.concat(graph, [done, attended], 1)]

        body = graph.subgraph(attend, [number, goes_on, start, done], name="sequence")
        count = ops.squeeze(graph, ops.shape(graph, lengths, 0, 1), [0])
        initial = [ops.constant(graph, [0]), nothing]
        _, attended = ops.loop(graph, count, ops.constant(graph, True), initial, body)
        # All sequences together are as long as the rows that they were cut from.
        return ops.reshape(graph, attended, ops.shape(graph, packed[0]))


class LinformerEncoderLayer(TransformerEncoderLayer):
    """`poptransformer.nn.LinformerEncoderLayer` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        d_model: see `poptransformer.nn.LinformerEncoderLayer`, as for all that follow.
        nhead: N.
        max_sequence_length: n.
        projected_dims: k.
        attention_style: which matrices are shared.
        **arguments: those of `TransformerEncoderLayer`.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        d_model: int,
        nhead: int,
        max_sequence_length: int,
        projected_dims: int,
        attention_style: str = "linformer-shared-heads",
        **arguments: Any,
    ) -> None:
        own = {
            "max_sequence_length": max_sequence_length,
            "projected_dims": projected_dims,
            "attention_style": attention_style,
        }
        extra = {**(arguments.pop("extra_attention_params", None) or {}), **own}
        self.sizes = (max_sequence_length, projected_dims)
        self.attention_style = attention_style
        super().__init__(
            *(context, name, d_model, nhead),
            attention_module=LinformerAttention,
            extra_attention_params=extra,
            **arguments,
        )

    def __call__(  # type: ignore[override]
        self,
        graph: Graph,
        src: ir.Value,
        src_key_padding_mask: ir.Value | None = None,
        lengths: ir.Value | None = None,
        projection: ir.Value | None = None,
    ) -> ir.Value:
        """Maps `[B, L, D]`, or packed `[1, T, D]`, to the same shape."""

        def attend(x: ir.Value) -> ir.Value:
            return self.self_attn(
                *(graph, x, x, x), key_padding_mask=src_key_padding_mask, lengths=lengths, projection=projection
            )

        return self._blocks(graph, src, attend)


class LinformerEncoder(TransformerEncoder):
    """`poptransformer.nn.LinformerEncoder` as a graph, with the weights of its state dict.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        encoder_layer: called with context and name, makes a `LinformerEncoderLayer`.
        num_layers: layers.
        norm: called with context and name, makes the norm of the last layer's output; None for none.
        enable_nested_tensor: must be false.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        encoder_layer: LayerFactory,
        num_layers: int,
        norm: LayerFactory | None = None,
        enable_nested_tensor: bool = False,
    ) -> None:
        super().__init__(context, name, encoder_layer, num_layers, norm, enable_nested_tensor)
        self.projection: LinformerProjection | None = None
        if self.layers[0].attention_style == "linformer-shared-layers":
            self.projection = LinformerProjection(self.context, "projection", *self.layers[0].sizes)

    def __call__(  # type: ignore[override]
        self,
        graph: Graph,
        src: ir.Value,
        src_key_padding_mask: ir.Value | None = None,
        lengths: ir.Value | None = None,
        extract_layer_idx: int | None = None,
    ) -> ir.Value:
        """Maps `[B, L, D]`, or packed `[1, T, D]`, to the same shape; see `poptransformer.nn.LinformerEncoder`."""
        projection = None if self.projection is None else self.projection.weight_id

        def run(index: int, x: ir.Value) -> ir.Value:
            return self.layers[index](graph, x, src_key_padding_mask, lengths, projection)

        return self._stack(graph, src, extract_layer_idx, run)
