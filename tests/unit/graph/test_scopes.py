# SPDX-License-Identifier: Apache-2.0
"""Names and placement of what is added to a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import ops
from poptransformer.errors import GraphError
from poptransformer.graph import Graph
from poptransformer.graph.builder import split_context
from poptransformer.step import Step
from tests.unit.runtime import tiny

FLOAT = ir.DataType.FLOAT


def name_under(*scopes: str | None) -> str:
    """Name of a node added under nested scopes."""
    graph = Graph()
    x = graph.input("x", FLOAT, [2])

    def nest(rest: tuple[str | None, ...]) -> str:
        if not rest:
            return ops.relu(graph, x).producer().name
        with graph.nameScope(rest[0]):
            return nest(rest[1:])

    return nest(scopes)


@pytest.mark.parametrize(
    ("context", "parts"),
    [
        ("model", ["model"]),
        ("model.layers.3.self_attn", ["model", "layers.3", "self_attn"]),
        ("transformer.h.11", ["transformer", "h.11"]),
        ("a/b", ["a", "b"]),
        ("a.0.1.b", ["a.0.1", "b"]),
        ("3", ["3"]),
        ("", []),
        (".a..b.", ["a", "b"]),
        ("block2.norm", ["block2", "norm"]),
    ],
)
def test_contexts_become_scopes(context: str, parts: list[str]) -> None:
    assert split_context(context) == parts


@pytest.mark.parametrize(
    ("scopes", "name"),
    [
        ((), "Relu"),
        (("attn",), "attn/Relu"),
        (("model", "layers.3"), "model/layers.3/Relu"),
        (("model.layers.3",), "model/layers.3/Relu"),
        (("model.layers.3", "model.layers.3.mlp"), "model/layers.3/mlp/Relu"),  # a whole context that continues
        (("model.layers.3", "mlp"), "model/layers.3/mlp/Relu"),
        (("model.layers.3", "model.layers.30"), "model/layers.3/model/layers.30/Relu"),  # another block, not inside
        (("model", "model"), "model/Relu"),
        (("a", None, "b"), "a/b/Relu"),
        (("a", ""), "a/Relu"),
    ],
)
def test_nested_scopes(scopes: tuple[str | None, ...], name: str) -> None:
    assert name_under(*scopes) == name


def test_the_scope_ends_with_its_block_even_by_an_error() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [2])
    with pytest.raises(KeyError), graph.nameScope("a"), graph.annotate(ipu=1):
        raise KeyError
    node = ops.relu(graph, x).producer()
    assert node.name == "Relu"
    assert not node.metadata_props


def test_the_root_scope_leaves_all_others_for_a_block() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [2])
    with graph.nameScope("a"):
        with graph.rootScope(), graph.nameScope("rotary"):
            assert ops.relu(graph, x).producer().name == "rotary/Relu"
        assert ops.relu(graph, x).producer().name == "a/Relu"


def test_repeated_names_are_numbered() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [2])
    names = []
    for _ in range(3):
        with graph.nameScope("a"):
            x = ops.relu(graph, x)
            names.append((x.producer().name, x.name))
    assert [node for node, _ in names] == ["a/Relu", "a/Relu_1", "a/Relu_2"]
    assert len({value for _, value in names}) == 3


def test_names_of_a_loop_body_follow_those_around_it() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [2])
    state = ir.val("state", FLOAT, [2])
    with graph.nameScope("a"):
        ops.relu(graph, x)
        body = graph.subgraph(lambda value: [ops.relu(graph, value), x], [state])
    assert [node.name for node in body] == ["a/Relu_1", "a/Identity"]  # an outer value leaves through an Identity
    assert all(value.producer().graph is body for value in body.outputs)
    assert graph.op("Relu", x).producer().name == "Relu"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_names_of_a_model_are_unique(family: str) -> None:
    engines = tiny.engine(family), tiny.unfused(family)
    for model in (*(engine.runtime.compiled.model for engine in engines), tiny.generator(family)):
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        values = [value.name for node in nodes for value in node.outputs] + list(model.graph.initializers)
        assert len({node.name for node in nodes}) == len(nodes)
        assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model/layers.1/self_attn/q_proj/Linear"),
        ("llama", "model/layers.0/mlp/down_proj/Linear"),
        ("llama", "model/embed_tokens/Gather"),
        ("llama", "model/norm/RMSNormalization"),
        ("llama", "lm_head/Linear"),
        ("gpt2", "transformer/h.1/attn/c_attn/Linear"),
        ("gpt2", "transformer/h.0/ln_1/LayerNormalization"),
        ("gpt2", "lm_head/Linear"),
    ],
)
def test_nodes_are_found_under_the_names_of_the_checkpoint(family: str, name: str) -> None:
    assert name in [node.name for node in tiny.unfused(family).runtime.compiled.model.graph]


def test_placement_is_noted_on_nodes() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [2])
    with graph.virtualGraph(2), graph.pipelineStage(5):
        with graph.annotate(ipu=None, amp=0.5):
            inner = ops.relu(graph, x).producer()
        outer = ops.relu(graph, x).producer()
    assert dict(inner.metadata_props) == {"ipu": "2", "pipeline_stage": "5", "amp": "0.5"}
    assert dict(outer.metadata_props) == {"ipu": "2", "pipeline_stage": "5"}
    assert not ops.relu(graph, x).producer().metadata_props


@pytest.mark.parametrize("fuse", [True, False])
def test_placement_survives_the_passes(fuse: bool) -> None:
    session = tiny.compiled_session(tiny.model(layer_per_ipu=[0, 1, 1]), fuse=fuse)
    placed = {node.name: node.metadata_props.get("ipu") for node in session.engine.runtime.compiled.model.graph}
    blocks = {name: ipu for name, ipu in placed.items() if name.startswith("model/layers.")}
    assert {name.split("/")[1]: ipu for name, ipu in blocks.items()} == {"layers.0": "1", "layers.1": "2"}
    assert len({(name.split("/")[1], ipu) for name, ipu in blocks.items()}) == 2
    assert ("model/layers.1/mlp/FusedLinear" if fuse else "model/layers.1/mlp/up_proj/Linear") in blocks
    assert placed["lm_head/FusedLinear" if fuse else "lm_head/Linear"] == "2", "the head is on the last IPU"


def test_a_weight_is_bound_once() -> None:
    graph = Graph()
    weight = np.zeros((2, 3), np.float32)
    graph.initializer(weight, "a.weight")
    with pytest.raises(GraphError, match=r"weight a\.weight is bound twice"):
        graph.initializer(weight, "a.weight")


def test_a_state_is_declared_once() -> None:
    """As when two attention layers get the same layer_index, and so the same cache."""
    graph = Graph()
    step = Step(graph)
    step.kv_cache(0, 2, 8)
    with pytest.raises(GraphError, match=r"state past_key_values\.0\.key is declared twice"):
        step.kv_cache(0, 2, 8)


@pytest.mark.parametrize(
    ("op", "shapes", "problem"),
    [
        ("MatMul", [[2, 3], [2, 3]], "Incompatible dimensions"),
        ("MatMul", [[2, 3]], "Required input"),
        ("MatMull", [[2, 3], [2, 3]], "No schema registered for 'MatMull'"),
        ("Add", [[2, 3], [4, 3]], "Incompatible dimensions"),
    ],
)
def test_a_node_that_cannot_be_is_refused_where_it_is_added(op: str, shapes: list[list[int]], problem: str) -> None:
    graph = Graph()
    values = [graph.input(f"x{i}", FLOAT, shape) for i, shape in enumerate(shapes)]
    with graph.nameScope("model.layers.3.mlp"), pytest.raises(GraphError) as error:
        graph.op(op, *values)
    assert str(error.value).startswith(f"{op} in model/layers.3/mlp cannot take (FLOAT[2,3]")
    assert problem in str(error.value)


def test_symbolic_dimensions_are_not_refused() -> None:
    graph = Graph()
    x, y = graph.input("x", FLOAT, ["batch", 3]), graph.input("y", FLOAT, [None, 1])
    assert ops.add(graph, x, y).dtype == FLOAT


def test_outputs_that_are_no_node_of_their_own() -> None:
    """An input, a weight and the same value twice: each output has its own name and producer."""
    graph = Graph()
    x = graph.input("x", FLOAT, [2])
    y = ops.relu(graph, x)
    weight = graph.initializer(np.ones(2, np.float32), "w")
    for value, name in ((x, "a"), (y, "b"), (y, "c"), (weight, "d")):
        graph.output(value, name)
    assert [value.name for value in graph.ir_graph.outputs] == ["a", "b", "c", "d"]
    assert [value.producer().op_type for value in graph.ir_graph.outputs] == [
        "Identity",
        "Relu",
        "Identity",
        "Identity",
    ]
    assert graph.ir_graph.inputs[0].name == "x"
