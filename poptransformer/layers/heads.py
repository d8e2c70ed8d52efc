# SPDX-License-Identifier: Apache-2.0
"""Values with an axis of heads, where replicas have some heads each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.errors import GraphError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.parallel import Heads, Share, local_heads

# What the metadata of a value calls the axis along which replicas have different parts of it.
DIVIDED_AXIS = "divided_axis"


class HeadShare(BaseLayer):
    """The heads that one replica has; it takes its part of what has all of them, and puts the parts together.

    Args:
        context: dotted path of the layer that has the heads.
        num_heads: N of the whole model.

    Attributes:
        total: N of the whole model.
        count: heads of one replica.
        strategy: of a weight that has a column for each head.
        share: which they are.

    Raises:
        ConfigError: the replicas cannot share them out; names the numbers that can.
    """

    def __init__(self, context: str | None, num_heads: int) -> None:
        super().__init__(context)
        self.total = num_heads
        self.count, _ = local_heads(self.build, self.context, num_heads)
        self.strategy = Heads(1, num_heads)
        self.share: Share = self.strategy.outputs(self.build, num_heads)
        self._numbers: ir.Value | None = None

    def own(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Returns the replica's heads of `[..., N, L, S]`; where there is one for all, or they are its own, `x`.

        Raises:
            GraphError: another number of heads.
        """
        size = None if x.shape is None else x.shape[-3]
        if self.count == self.total or size in (1, self.count):
            return x
        if isinstance(size, int) and size != self.total:
            raise GraphError(f"{x.name} has {size} heads; expected 1, {self.count} or {self.total}, shape {x.shape}.")
        if self._numbers is None:
            # What tells the replicas apart is a weight, so that their graphs are equal.
            own = np.arange(*self.share.ranges[0], dtype=np.int64)
            self._numbers = self.add_initialized_input_tensor(own, self.key("heads"))
        numbers = self._numbers
        if not isinstance(size, int):  # one for all, or all of them
            numbers = graph.op("Mod", numbers, ops.shape(graph, x, -3, -2))
        return ops.gather(graph, x, numbers, axis=-3)

    def own_past(self, graph: Graph, past: ir.Value) -> ir.Value:
        """The same for keys or values of earlier calls, `[B, N, P, H]`; as a graph input each replica gets its own."""
        if self.count < self.total and past.is_graph_input() and past.shape is not None:
            past.shape = ir.Shape([past.shape[0], self.count, *past.shape[2:]])
            past.meta[DIVIDED_AXIS] = 1
        return self.own(graph, past)

    def divided(self, present: ir.Value) -> ir.Value:
        """Says of keys or values `[B, N, S, H]` that each replica has its own; as an output all come together."""
        if self.count < self.total:
            present.meta[DIVIDED_AXIS] = 1
        return present

    def gathered(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Returns all replicas' heads of `[B, N, L, S]`."""
        if self.count == self.total:
            return x
        every = ops.all_gather(graph, ops.transpose(graph, x, [0, 2, 3, 1]), self.num_replicas)
        return ops.transpose(graph, every, [0, 3, 1, 2])

    def mean(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Returns the mean over all heads, `[B, N, L, S]` to `[B, L, S]`."""
        mean = ops.reduce_mean(graph, x, [1], keepdims=False)
        if self.count == self.total:
            return mean
        return ops.all_reduce(graph, ops.div(graph, mean, self.num_replicas), self.num_replicas)


def divided_axis(value: ir.Value) -> int | None:
    """The axis along which replicas have different parts of a value; None where all have all of it."""
    return value.meta.get(DIVIDED_AXIS)


def split_heads(graph: Graph, x: ir.Value, num_heads: int, head_dim: int) -> ir.Value:
    """Returns `[B, L, N*H]` as `[B, N, L, H]`."""
    return ops.transpose(graph, ops.reshape(graph, x, [0, 0, num_heads, head_dim]), [0, 2, 1, 3])


def joined_heads(graph: Graph, x: ir.Value, num_heads: int, head_dim: int) -> ir.Value:
    """Returns `[B, N, L, H]` as `[B, L, N*H]`."""
    return ops.reshape(graph, ops.transpose(graph, x, [0, 2, 1, 3]), [0, 0, num_heads * head_dim])
