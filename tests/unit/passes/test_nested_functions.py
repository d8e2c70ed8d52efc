# SPDX-License-Identifier: Apache-2.0
"""Function bodies that call overloads run in plain onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from poptransformer import passes
from poptransformer.graph import DOMAIN, IR_VERSION, Graph

FLOAT = ir.DataType.FLOAT


def function(name: str, overload: str, *nodes: tuple[str, str, str]) -> ir.Function:
    """A function of one input; nodes are (domain, op type, overload), each of what the one before returns."""
    value = start = ir.Value(name="x")
    made = []
    for index, (domain, op_type, node_overload) in enumerate(nodes):
        made.append(ir.Node(domain, op_type, [value], overload=node_overload, name=f"{op_type}_{index}"))
        value = made[-1].outputs[0]
        value.name = f"v{index}"
    graph = ir.Graph([start], [value], nodes=made, opset_imports={"": 24, DOMAIN: 1}, name=name)
    return ir.Function(DOMAIN, name, overload, graph=graph, attributes=[])


def model(*outer: str) -> ir.Model:
    """Calls Outer, whose bodies call Inner's: `twice` of Outer is Inner's `neg` and then its `abs`."""
    graph = Graph()
    value = graph.input("x", FLOAT, [3])
    for overload in outer:
        name, _, overload = overload.partition(".")
        node = ir.Node(DOMAIN, name, [value], overload=overload, version=1, name=f"{name}_{overload}")
        graph.ir_graph.append(node)
        value = node.outputs[0]
        value.name, value.dtype, value.shape = f"{name}_{overload}_0", FLOAT, ir.Shape([3])
    graph.output(value, "y")
    functions = [
        function("Inner", "neg", ("", "Neg", "")),
        function("Inner", "abs", ("", "Abs", "")),
        function("Outer", "twice", (DOMAIN, "Inner", "neg"), (DOMAIN, "Inner", "abs"), ("", "Neg", "")),
        function("Outer", "once", (DOMAIN, "Inner", "neg")),
    ]
    return ir.Model(graph.ir_graph, ir_version=IR_VERSION, functions=functions)


def run(made: ir.Model) -> np.ndarray:
    proto = ir.serde.serialize_model(made)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": np.array([-1, 2, -3], np.float32)})[0]


def test_nested_overloads_get_names_of_their_own() -> None:
    made = model("Outer.twice", "Outer.once", "Inner.neg")
    passes.name_nested_functions(made)
    assert [(name, overload) for _, name, overload in made.functions] == [
        ("Inner", "neg"),  # the graph calls it
        ("Outer", "twice"),
        ("Outer", "once"),
        ("Inner_neg", ""),
        ("Inner_abs", ""),
    ]
    np.testing.assert_array_equal(run(made), [-1, -2, -3])


def test_functions_that_nobody_calls_any_more_go() -> None:
    made = model("Outer.twice")
    passes.name_nested_functions(made)
    assert sorted(name for _, name, _ in made.functions) == ["Inner_abs", "Inner_neg", "Outer"]
    np.testing.assert_array_equal(run(made), [-1, -2, -3])


def test_doing_it_twice_changes_nothing_more() -> None:
    made = model("Outer.once")
    passes.name_nested_functions(made)
    before = list(made.functions)
    passes.name_nested_functions(made)
    assert list(made.functions) == before
