# SPDX-License-Identifier: Apache-2.0
"""Small graphs, fused and as they were written, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from poptransformer import ops, passes
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session

FLOAT = ir.DataType.FLOAT
D, N = 24, 40  # columns of x, and of what most weights make of it
X = np.random.default_rng(0).standard_normal((2, 3, D)).astype(np.float32)

Make = Callable[["Layers", ir.Value], ir.Value | Sequence[ir.Value]]


class Layers:
    """Adds pieces of layers with random weights to a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.random = np.random.default_rng(1)
        self.count = 0

    def weight(self, *shape: int) -> ir.Value:
        self.count += 1
        array = self.random.standard_normal(shape).astype(np.float32) / 4
        return self.graph.initializer(array, f"weight{self.count}")

    def linear(self, x: ir.Value, columns: int = N, bias: bool = False, name: str = "linear") -> ir.Value:
        with self.graph.nameScope(name):
            y = ops.matmul(self.graph, x, self.weight(x.shape[-1], columns))
            return ops.add(self.graph, y, self.weight(columns)) if bias else y

    def rms(self, x: ir.Value, epsilon: float = 1e-3) -> ir.Value:
        with self.graph.nameScope("norm"):
            return ops.rms_norm(self.graph, x, self.weight(x.shape[-1]), epsilon)

    def layer_norm(self, x: ir.Value, bias: bool = True) -> ir.Value:
        shift = self.weight(x.shape[-1]) if bias else None
        return ops.layer_norm(self.graph, x, self.weight(x.shape[-1]), shift, 1e-3)


def built(make: Make) -> ir.Model:
    """A model of input `x` [batch, 3, D] and the outputs y0, y1, ... that `make` returns, products as `Linear`."""
    graph = Graph()
    with graph.nameScope("block"):
        made = make(Layers(graph), graph.input("x", FLOAT, ["batch", 3, D]))
        for number, value in enumerate([made] if isinstance(made, ir.Value) else made):
            graph.output(value, f"y{number}")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.matmul_to_linear(model)
    return model


def fused(make: Make) -> ir.Model:
    """The same after the fuse pass."""
    model = built(make)
    passes.fuse(model)
    return model


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def run(model: ir.Model, use_native: bool, x: np.ndarray = X) -> list[np.ndarray]:
    return make_session(model, SessionSettings(threads=1, use_native=use_native)).run(None, {"x": x})


def check(make: Make, *expected: str) -> list[ir.Node]:
    """Compares what is computed, with and without the library; returns the nodes, of the types `expected`."""
    model, plain = fused(make), built(make)
    assert op_types(model) == list(expected)
    names = [node.name for node in model.graph] + [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    for one in (model, plain):
        passes.attach_functions(one)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    reference = run(plain, use_native=False)
    for use_native in (True, False):
        results = run(model, use_native)
        assert len(results) == len(reference)
        for y, wanted in zip(results, reference, strict=True):
            np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    return list(model.graph)
