# SPDX-License-Identifier: Apache-2.0
"""Which nodes become chains, and that a chain computes what its nodes did, with the kernel and through its body."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from poptransformer import native, ops, passes
from poptransformer.graph import DOMAIN, IR_VERSION, Graph
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session

D = 24
X = np.random.default_rng(0).standard_normal((2, 3, D)).astype(np.float32)
Make = Callable[[Graph, ir.Value], ir.Value]


def linear(graph: Graph, x: ir.Value, seed: int, scope: str = "layer") -> ir.Value:
    weight = np.random.default_rng(seed).standard_normal((D, D)).astype(np.float32) / 5
    with graph.nameScope(scope):
        return apply(graph, x, graph.initializer(weight, f"weight{seed}"))


def apply(graph: Graph, x: ir.Value, weight: ir.Value) -> ir.Value:
    y = graph.op("Linear", x, weight, domain=DOMAIN)
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape(["batch", "tokens", D])
    return y


def built(make: Make, chained: bool) -> ir.Model:
    graph = Graph()
    x = graph.input("x", ir.DataType.FLOAT, ["batch", "tokens", D])
    graph.output(make(graph, x), "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.attach_functions(model)
    if chained:
        passes.chain(model)
        onnx.checker.check_model(ir.serde.serialize_model(model))
    return model


def run(model: ir.Model, use_native: bool) -> np.ndarray:
    return make_session(model, SessionSettings(threads=1, use_native=use_native)).run(["y"], {"x": X})[0]


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def straight(graph: Graph, x: ir.Value) -> ir.Value:
    for seed in range(3):
        x = linear(graph, x, seed)
    return x


def broken(graph: Graph, x: ir.Value) -> ir.Value:
    """What lies between hangs on the first two and is needed by the last two."""
    x = ops.relu(graph, linear(graph, linear(graph, x, 0), 1))
    return linear(graph, linear(graph, x, 2), 3)


def beside(graph: Graph, x: ir.Value) -> ir.Value:
    """What is written between two links, but reads and makes nothing of theirs, comes before them; or after."""
    first = linear(graph, x, 0)
    other = ops.relu(graph, x)
    second = linear(graph, first, 1)
    late = ops.relu(graph, first)
    third = linear(graph, ops.add(graph, second, second), 2)
    return ops.add(graph, ops.add(graph, third, late), linear(graph, other, 3))


def single(graph: Graph, x: ir.Value) -> ir.Value:
    return ops.relu(graph, linear(graph, ops.relu(graph, x), 0))


def with_output_inside(graph: Graph, x: ir.Value) -> ir.Value:
    x = linear(graph, x, 0)
    graph.output(x, "inside")
    return linear(graph, x, 1)


def chosen(graph: Graph, x: ir.Value) -> ir.Value:
    positions = graph.initializer(np.array([[[2]], [[0]]], np.int64), "positions")
    x = graph.op("GatherND", linear(graph, x, 0), positions, batch_dims=1)
    return linear(graph, x, 1)


def chosen_otherwise(graph: Graph, x: ir.Value) -> ir.Value:
    """Without batch dimensions: not the form that a chain has a kernel for."""
    positions = graph.initializer(np.array([[0, 2], [1, 0]], np.int64), "positions")
    x = graph.op("GatherND", linear(graph, linear(graph, x, 0), 1), positions)
    return linear(graph, linear(graph, x, 2), 3)


CASES: list[tuple[Make, list[str]]] = [
    (straight, ["Chain"]),
    (broken, ["Chain", "Relu", "Chain"]),
    (beside, ["Relu", "Chain", "Add", "Chain", "Relu", "Add", "Add"]),
    (single, ["Relu", "Linear", "Relu"]),
    (with_output_inside, ["Chain"]),
    (chosen, ["Chain"]),
    (chosen_otherwise, ["Chain", "GatherND", "Chain"]),
]


@pytest.mark.parametrize(("make", "expected"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_runs_become_chains(make: Make, expected: list[str]) -> None:
    assert sorted(op_types(built(make, chained=True))) == sorted(expected)


@pytest.mark.parametrize("use_native", [True, False])
@pytest.mark.parametrize("make", [make for make, _ in CASES], ids=[make.__name__ for make, _ in CASES])
def test_a_chain_computes_what_its_nodes_did(make: Make, use_native: bool) -> None:
    if use_native and not native.available():
        pytest.skip("the custom ops are not built: run `make`")
    expected = run(built(make, chained=False), use_native=False)
    np.testing.assert_allclose(run(built(make, chained=True), use_native), expected, rtol=1e-5, atol=1e-5)


def test_equal_nodes_share_their_attributes() -> None:
    (node,) = [node for node in built(straight, chained=True).graph if node.op_type == "Chain"]
    assert node.attributes["kinds"].as_string() == "Linear"
    assert sorted(node.attributes) == ["kinds", "steps"]
    assert node.name == "layer/Chain"


def test_graphs_inside_nodes_have_chains_too() -> None:
    def make(graph: Graph, x: ir.Value) -> ir.Value:
        weights = [graph.initializer(np.eye(D, dtype=np.float32) * n, f"outer{n}") for n in (2, 3)]

        def branch(name: str) -> ir.Graph:
            inner = Graph(name)
            with inner.nameScope(name):
                inner.output(apply(inner, apply(inner, x, weights[0]), weights[1]), f"{name}_result")
            return inner.ir_graph

        condition = graph.initializer(np.array(True), "condition")
        y = graph.op("If", condition, then_branch=branch("then"), else_branch=branch("else"))
        y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape(["batch", "tokens", D])
        return y

    model = built(make, chained=True)
    (branching,) = [node for node in model.graph if node.op_type == "If"]
    for name in ("then_branch", "else_branch"):
        assert [node.op_type for node in branching.attributes[name].as_graph()] == ["Chain"]
    for use_native in {native.available(), False}:
        np.testing.assert_allclose(run(model, use_native), 6 * X, rtol=1e-6)
