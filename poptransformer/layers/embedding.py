# SPDX-License-Identifier: Apache-2.0
"""Lookup of learned vectors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.parallel import Share, Strategy, Vocabulary, strategy_of, take


class Embedding(BaseLayer):
    """Rows of a learned table `[vocab_size, embedding_size]` (torch.nn.Embedding).

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        vocab_size: V.
        embedding_size: D.
        strategy: `identity`; `vocabulary`: each replica has some of the rows, and the results are added up; `start` or
            `Heads`: each replica has some of the columns.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        vocab_size: int,
        embedding_size: int,
        strategy: Strategy | str = "identity",
    ) -> None:
        super().__init__(context, name)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.strategy = strategy_of(strategy)

    @property
    def is_divided(self) -> bool:
        """Whether each replica has some of the rows."""
        return isinstance(self.strategy, Vocabulary) and self.num_replicas > 1

    def collect_bind_layer_weights(self) -> None:
        weight = self.get_param_from_state_dict(self.key("weight"), [self.vocab_size, self.embedding_size])
        if isinstance(self.strategy, Vocabulary):
            self.rows = self.strategy.outputs(self.build, self.vocab_size)
            weight = take(weight, self.rows, Share.whole(self.embedding_size))
        else:
            columns = self.strategy.outputs(self.build, self.embedding_size)
            weight = take(weight, Share.whole(self.vocab_size), columns)
        self.weight_id = self.add_initialized_input_tensor(weight, self.key("weight"))
        if self.is_divided:
            # What tells the replicas apart is a weight, so that their graphs are equal.
            tokens = np.array(self.rows.ranges[0], np.int64)
            self.token_range_id = self.add_initialized_input_tensor(tokens, self.key("token_range"))

    def __call__(self, graph: Graph, input_ids: ir.Value) -> ir.Value:
        """Maps ids int64 `[...]` to vectors fp32 `[..., embedding_size]`, or to the replica's columns of them."""
        with graph.nameScope(self.context):
            if not self.is_divided:
                return ops.gather(graph, self.weight_id, input_ids)
            # Not by Gather: ONNX's shape inference wants to know what it picks of integers, and here it cannot.
            first, end = (graph.op(pick, self.token_range_id, keepdims=0) for pick in ("ReduceMin", "ReduceMax"))
            before, behind = ops.less(graph, input_ids, first), ops.less(graph, input_ids, end)
            inside = graph.op("And", graph.op("Not", before), behind)
            # Another replica's tokens read row 0, and give zeros.
            row = ops.where(graph, inside, ops.sub(graph, input_ids, first), 0)
            found = ops.gather(graph, self.weight_id, row)
            own = ops.where(graph, ops.unsqueeze(graph, inside, [-1]), found, 0.0)
            return ops.all_reduce(graph, own, self.num_replicas)
