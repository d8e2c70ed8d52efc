# SPDX-License-Identifier: Apache-2.0
"""Ops with several bodies: each node gets the one that its attributes and inputs ask for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from poptransformer import ops, passes
from poptransformer.graph import IR_VERSION, Graph, Variant, function_spec


def test_an_op_with_one_body_has_no_overload() -> None:
    assert function_spec("Linear").variants() == [Variant()]
    assert Variant().overload == ""


def test_overloads_are_named_after_what_they_hang_on() -> None:
    names = [variant.overload for variant in function_spec("QuantizedLinear").variants()]
    assert names[:4] == ["int4", "int4_bias", "int4_offsets", "int4_offsets_bias"]
    assert len(set(names)) == len(names) == 6 * 4


def packed(graph: Graph, name: str, format: str, offsets: bool) -> list[ir.Value | None]:
    """A packed weight `[3, 5]` of ones."""
    code = {"int4": 0x99, "int8": 129, "e4m3fn": 0x38}[format]
    arrays: list[np.ndarray] = [
        np.full((1, 1, 4 if format == "int4" else 8, 16, 4), code, np.uint8),
        np.ones((1, 1, 16), np.float16 if format.startswith("int") else np.float32),
    ]
    if offsets:
        arrays.append(np.full((1, 1, 16), -8, np.float16))
    return [graph.builder.initializer(ir.tensor(a), f"{name}.{i}", qualify=False) for i, a in enumerate(arrays)]


@pytest.mark.parametrize("lookups", [False, True])
def test_one_model_may_use_several(lookups: bool) -> None:
    graph = Graph()
    x = graph.input("x", ir.DataType.FLOAT, [2, 5])
    ids = graph.input("ids", ir.DataType.INT64, [2])
    bias = graph.initializer(np.full(3, 0.5, np.float32), "bias")
    for index, (format, offsets) in enumerate([("int4", False), ("int4", True), ("int8", False), ("e4m3fn", False)]):
        weight = packed(graph, f"w{index}", format, offsets)
        graph.output(ops.quantized_linear(graph, x, *weight, format=format, columns=3), f"plain{index}")
        given = dict(zip(("codes", "scales", "offsets"), weight, strict=False))
        graph.output(ops.quantized_linear(graph, x, **given, bias=bias, format=format, columns=3), f"biased{index}")
        if lookups:
            row = ops.quantized_embedding(graph, ids, *weight, format=format, columns=3, depth=5)
            graph.output(row, f"row{index}")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.attach_functions(model)
    assert len(model.functions) == 8 + 4 * lookups
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    results = session.run(None, {"x": np.ones((2, 5), np.float32), "ids": np.array([0, 2])})
    expected = {"plain": 5.0, "biased": 5.5, "row": 1.0}
    for output, result in zip(session.get_outputs(), results, strict=True):
        np.testing.assert_array_equal(result, np.full_like(result, expected[output.name[:-1]]))
