# SPDX-License-Identifier: Apache-2.0
"""Cutting a graph at the borders of its stages."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import ops
from poptransformer.errors import GraphError
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.passes import place_after_blocks, split_stages

pytestmark = pytest.mark.unit
STATES = {"past": "present"}
TABLE = np.random.default_rng(0).standard_normal((60, 8), np.float32)


def model(stages: tuple[int, ...] = (0, 1), head: int | None = None, tied: bool = False) -> ir.Model:
    """Embedding, one product for each of `stages`, and a head."""
    graph = Graph()
    ids = graph.input("input_ids", ir.DataType.INT64, [None, None])
    lengths = graph.input("lengths", ir.DataType.INT64, [None])
    past = graph.input("past", ir.DataType.FLOAT, [None, None, 8])
    table = graph.initializer(TABLE, "table")
    weights = [graph.initializer(TABLE[: 8 * 4].reshape(-1)[:64].reshape(8, 8) * (n + 1), f"w{n}") for n in stages]
    with graph.nameScope("positions"):
        shared = ops.unsqueeze(graph, ops.cast(graph, lengths, np.float32), [1, 2])
    with graph.nameScope("embed"):
        x = ops.gather(graph, table, ids)
    for number, stage in enumerate(stages):
        with graph.nameScope(f"block.{number}"), graph.annotate(ipu=stage, pipeline_stage=stage):
            x = ops.add(graph, ops.matmul(graph, x, weights[number]), shared)
            if number == len(stages) - 1:
                x = ops.add(graph, x, past)
                graph.output(x, "present")
    with graph.nameScope("norm"):
        x = ops.tanh(graph, x)
    with graph.nameScope("head"), graph.annotate(ipu=head, pipeline_stage=head):
        weight = ops.transpose(graph, table, [1, 0]) if tied else graph.initializer(TABLE.T.copy(), "head")
        graph.output(ops.matmul(graph, x, weight), "logits")
    return ir.Model(graph.ir_graph, ir_version=IR_VERSION)


def weights_of(part: ir.Model) -> set[str]:
    return {name for name in part.graph.initializers if not name.startswith("const_")}


def transfers(part: ir.Model, op: str) -> list[tuple[int, int]]:
    peer = "to" if op == "Send" else "source"
    return [(n.attributes[peer].as_int(), n.attributes["tag"].as_int()) for n in part.graph if n.op_type == op]


def test_each_segment_has_its_own_weights_and_what_it_needs_of_the_inputs() -> None:
    first, second = split_stages(model(), STATES)
    assert (first.stage, second.stage) == (0, 1)
    assert (weights_of(first.model), weights_of(second.model)) == ({"table", "w0"}, {"w1", "head"})
    assert [value.name for value in first.model.graph.inputs] == ["input_ids", "lengths"]
    assert [value.name for value in second.model.graph.inputs] == ["lengths", "past"]
    assert [value.name for value in second.model.graph.outputs] == ["present", "logits"]
    assert transfers(first.model, "Send") == [(1, 0)] and transfers(second.model, "Recv") == [(0, 0)]


def test_what_hangs_on_inputs_alone_is_repeated_and_not_sent() -> None:
    for segment in split_stages(model(), STATES):
        assert sum(node.op_type == "Cast" for node in segment.model.graph) == 1


def test_a_tied_head_lies_on_the_stage_of_the_table() -> None:
    segments = split_stages(model(head=0, tied=True), STATES)
    assert [segment.stage for segment in segments] == [0, 1, 0]
    assert [weights_of(segment.model) for segment in segments] == [{"table", "w0"}, {"w1"}, {"table"}]


def test_stages_without_blocks() -> None:
    """`layer_per_ipu: [0, 1, 1, 0]`: the embedding and the head have a stage each."""
    segments = split_stages(model(stages=(1, 2), head=3), STATES)
    assert [(segment.stage, *sorted(weights_of(segment.model))) for segment in segments] == [
        (0, "table"),
        (1, "w1"),
        (2, "w2"),
        (3, "head"),
    ]


def test_the_model_itself_stays_as_it_is() -> None:
    whole = model()
    before = ir.serde.serialize_model(whole).SerializeToString()
    split_stages(whole, STATES)
    assert ir.serde.serialize_model(whole).SerializeToString() == before


def test_a_norm_behind_the_blocks_goes_to_the_head() -> None:
    whole = model(head=0, tied=True)
    place_after_blocks(whole)
    places = {str(node.name).split("/")[0]: node.metadata_props.get("pipeline_stage") for node in whole.graph}
    assert (places["embed"], places["norm"], places["head"]) == (None, "0", "0")
    assert [segment.stage for segment in split_stages(whole, STATES)] == [0, 1, 0]


def test_only_floats_are_sent() -> None:
    graph = Graph()
    lengths = graph.input("lengths", ir.DataType.INT64, [None])
    past = graph.input("past", ir.DataType.FLOAT, [None])
    weight = graph.initializer(TABLE, "table")
    with graph.annotate(pipeline_stage=0):
        graph.output(ops.add(graph, past, ops.gather(graph, weight, lengths)), "present")
        chosen = ops.cast(graph, past, np.int64)
    with graph.annotate(pipeline_stage=1):
        graph.output(ops.add(graph, chosen, lengths), "y")
    with pytest.raises(GraphError, match="goes from one pipeline stage to another, but is INT64; only fp32 can"):
        split_stages(ir.Model(graph.ir_graph, ir_version=IR_VERSION), STATES)


def test_a_state_that_hangs_on_inputs_alone_is_on_every_stage() -> None:
    """ChatGLM remembers where a row's context ends; every block asks for it."""
    graph = Graph()
    lengths = graph.input("lengths", ir.DataType.INT64, [None])
    past = graph.input("past", ir.DataType.INT64, [None])
    known = ops.maximum(graph, past, lengths)
    graph.output(known, "present")
    x = ops.gather(graph, graph.initializer(TABLE, "table"), known)
    for stage in (0, 1):
        with graph.annotate(pipeline_stage=stage):
            x = ops.add(graph, x, ops.unsqueeze(graph, ops.cast(graph, known, np.float32), [1]))
    graph.output(x, "y")
    first, second = split_stages(ir.Model(graph.ir_graph, ir_version=IR_VERSION), STATES)
    for segment in (first, second):
        assert [value.name for value in segment.model.graph.inputs] == ["lengths", "past"]
        assert segment.model.graph.outputs[0].name == "present"
    assert len(transfers(first.model, "Send")) == len(transfers(second.model, "Recv")) == 1
