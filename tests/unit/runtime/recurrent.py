# SPDX-License-Identifier: Apache-2.0
"""A model of a few lines whose states are no caches: each step makes them anew from the ones before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.engine import Engine
from poptransformer.graph import Graph
from poptransformer.layers import BaseLayer, Embedding, LMHead
from poptransformer.models.base_model import HFDecBaseModel
from poptransformer.step import BATCH, SLOTS, StateSpec, Step
from tests.unit.runtime import tiny

COUNT = 5  # the counter's initial value
WIDTH = 3


class RunningSum(BaseLayer):
    """Logits from the sum of all embeddings so far, plus a thousandth of the token count.

    Its states: the sum, the count as integers, and a table over the cache's slots that each step adds 1 to.
    """

    def __init__(self, context: str | None, name: str, vocab_size: int, width: int) -> None:
        super().__init__(context, name)
        self.width = width
        self.embed = Embedding("model", "embed_tokens", vocab_size, width)
        self.head = LMHead(None, "lm_head", vocab_size, width)

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        with graph.nameScope(self.context):
            total = step.state(StateSpec("past.sum", "present.sum", "float32", (BATCH, self.width)))
            count = step.state(StateSpec("past.count", "present.count", "int64", (BATCH, 1), initial=COUNT))
            table = step.state(StateSpec("past.table", "present.table", "float32", (BATCH, SLOTS, WIDTH)))
            length = ops.squeeze(graph, ops.shape(graph, step.input_ids, 1, 2), [0])
            index = ops.unsqueeze(graph, graph.op("Range", 0, length, 1), [0])
            real = ops.cast(graph, ops.less(graph, index, ops.unsqueeze(graph, step.lengths, [1])), np.float32)
            x = ops.mul(graph, self.embed(graph, step.input_ids), ops.unsqueeze(graph, real, [2]))
            total.update(ops.add(graph, total.past, graph.op("ReduceSum", x, [1], keepdims=0)))
            count.update(ops.add(graph, count.past, ops.unsqueeze(graph, step.lengths, [1])))
            table.update(ops.add(graph, table.past, 1.0))
            sums = ops.add(graph, graph.op("CumSum", x, graph.constant(1)), ops.unsqueeze(graph, total.past, [1]))
            known = ops.cast(graph, ops.unsqueeze(graph, count.past, [1]), np.float32)
            return ops.add(graph, self.head(graph, sums), ops.mul(graph, known, 1e-3))


class RunningSumModel(HFDecBaseModel):
    """The layer as a model over a Llama checkpoint."""

    def build_model_graph(self) -> ir.Value:
        config = self.hf_config
        return RunningSum(None, "sum", config.vocab_size, config.hidden_size)(self.graph, self.step)


def engine() -> Engine:
    """The model, compiled."""
    with tiny.use_build(tiny.Build()):
        model = RunningSumModel(hf_model_name=str(tiny.folder()), max_length=64)
    model.build_graph()
    return Engine.from_model(model)


def logits(ids: list[int], before: int = 0) -> np.ndarray:
    """What NumPy computes for one row `[L, V]`, whose first `before` ids came in an earlier step."""
    weights = tiny.torch_model().state_dict()
    sums = np.cumsum(weights["model.embed_tokens.weight"].numpy()[ids], axis=0)
    return (sums @ weights["lm_head.weight"].numpy().T + 1e-3 * (COUNT + before))[before:]


def greedy(ids: list[int], count: int) -> list[int]:
    """What NumPy generates."""
    row = list(ids)
    for _ in range(count):
        row.append(int(logits(row)[-1].argmax()))
        if row[-1] == tiny.EOS:
            break
    return row[len(ids) :]
