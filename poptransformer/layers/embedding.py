# SPDX-License-Identifier: Apache-2.0
"""Lookup of learned vectors."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer


class Embedding(BaseLayer):
    """Rows of a learned table `[vocab_size, embedding_size]` (torch.nn.Embedding)."""

    def __init__(self, context: str | None, name: str | None, vocab_size: int, embedding_size: int) -> None:
        super().__init__(context, name)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size

    def collect_bind_layer_weights(self) -> None:
        weight = self.get_param_from_state_dict(self.key("weight"), [self.vocab_size, self.embedding_size])
        self.weight_id = self.add_initialized_input_tensor(weight, self.key("weight"))

    def __call__(self, graph: Graph, input_ids: ir.Value) -> ir.Value:
        """Maps ids int64 `[...]` to vectors fp32 `[..., embedding_size]`."""
        with graph.nameScope(self.context):
            return ops.gather(graph, self.weight_id, input_ids)
