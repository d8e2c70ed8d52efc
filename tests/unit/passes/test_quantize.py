# SPDX-License-Identifier: Apache-2.0
"""The quantize pass on small graphs: what is packed, and what becomes of the nodes that read it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import ops, passes
from poptransformer.errors import ConfigError
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.recipe import Recipe
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session
from tests.unit.passes.small_graph import (
    TABLE,
    UP,
    D,
    V,
    built,
    op_types,
    quantized,
    reference,
    run,
)


@pytest.mark.parametrize("precision", ["int8", "int4", "fp8_weight"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_graph_computes_with_the_dequantized_weights(precision: str, tied: bool) -> None:
    model, report = quantized(precision, tied)
    expected = reference(model, tied)
    np.testing.assert_allclose(run(model), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    products = ["QuantizedLinear"] * 5
    lookup = ["QuantizedEmbedding"] if tied else ["Gather", "Cast"]
    assert op_types(model) == lookup + products
    assert len(report.packed) == 5
    exact = run(quantized("fp32", tied)[0])
    assert 0 < np.abs(expected - exact).max() < 0.3 * np.abs(exact).max()


def test_a_tied_table_is_packed_once() -> None:
    model, report = quantized("int4")
    codes = model.graph.initializers["model.embed.weight.codes"]
    assert sorted(use.node.op_type for use in codes.uses()) == ["QuantizedEmbedding", "QuantizedLinear"]
    assert "model.embed.weight" not in model.graph.initializers
    assert [weight.name for weight in report.weights].count("model.embed.weight") == 1
    bytes_held = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    assert bytes_held == report.nbytes


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_table_of_its_own_keeps_16_bits(stored: Any) -> None:
    model = built(tied=False, table=TABLE.astype(stored))
    report = passes.quantize(model, Recipe.of("int4"))
    table = model.graph.initializers["model.embed.weight"]
    expected = ir.DataType.BFLOAT16 if stored == ml_dtypes.bfloat16 else ir.DataType.FLOAT16
    assert (table.dtype, table.const_value.dtype) == (expected, expected)
    entry = next(weight for weight in report.weights if weight.name == "model.embed.weight")
    assert (entry.precision, entry.stored) == ("int4", "bf16" if stored == ml_dtypes.bfloat16 else "fp16")
    assert entry.nbytes == 2 * V * D
    assert (entry.error == 0) == (stored != np.float32)


def test_a_pattern_that_names_a_table_packs_it() -> None:
    model, _ = quantized({"*embed*": "int8", "*": "int4"}, tied=False)
    assert op_types(model)[0] == "QuantizedEmbedding"
    expected = reference(model, tied=False)
    np.testing.assert_allclose(run(model), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_nodes_keep_names_scopes_shapes_and_placement() -> None:
    model, _ = quantized("fp8")
    nodes = {node.name: node for node in model.graph}
    product = nodes["model/layers.1/mlp/down/QuantizedLinear"]
    assert product.metadata_props == {"ipu": "1"}
    assert [value.name for value in product.inputs[1:]] == [
        "model.layers.1.mlp.down.weight.codes",
        "model.layers.1.mlp.down.weight.scales",
    ]
    assert str(product.outputs[0].shape) == "[batch,tokens,40]"
    rounding = nodes["model/layers.1/mlp/down/RoundToFloat8"]
    assert rounding.outputs[0] is product.inputs[0]
    assert rounding.metadata_props == {"ipu": "1"}
    assert str(rounding.outputs[0].shape) == "[batch,tokens,70]"
    assert "model/embed/QuantizedEmbedding" in nodes
    assert [output.name for output in model.graph.outputs] == ["logits"]


def test_products_of_one_input_share_its_rounding() -> None:
    graph = Graph()
    x = graph.input("x", ir.DataType.FLOAT, [2, D])
    products = []
    for name in "qkv":
        with graph.nameScope(name):
            products.append(ops.matmul(graph, x, graph.initializer(UP.T.copy(), f"{name}.weight")))
    graph.output(ops.add(graph, ops.add(graph, *products[:2]), products[2]), "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.matmul_to_linear(model)
    passes.quantize(model, Recipe.of({"k*": {"precision": "fp8", "fp8_format": "e5m2"}, "*": "fp8"}))
    assert op_types(model).count("RoundToFloat8") == 2
    assert [node.op_type for node in model.graph][:2] == ["RoundToFloat8", "QuantizedLinear"]


def test_ids_of_32_bits_are_widened() -> None:
    graph = Graph()
    table = graph.initializer(TABLE, "table")
    ids = graph.input("ids", ir.DataType.INT32, [2])
    graph.output(ops.add(graph, ops.gather(graph, table, ids), 1.0), "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.quantize(model, Recipe.of({"table": "int8"}))
    passes.attach_functions(model)
    session = make_session(model, SessionSettings(threads=1))
    y = session.run(["y"], {"ids": np.array([1, 49], np.int32)})[0]
    np.testing.assert_allclose(y, TABLE[[1, 49]] + 1, atol=0.05)


@pytest.mark.parametrize("axis", [0, 1])
def test_lookups_of_columns_are_no_reason_to_pack(axis: int) -> None:
    graph = Graph()
    table = graph.initializer(TABLE, "table")
    ids = graph.input("ids", ir.DataType.INT64, [2])
    graph.output(ops.gather(graph, table, ids, axis=axis), "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.quantize(model, Recipe.of({"table": "int8"}))
    assert ("QuantizedEmbedding" in op_types(model)) == (axis == 0)


@pytest.mark.parametrize("precision", ["int8", "int4", "fp8", "fp8_weight"])
def test_vectors_and_integers_stay(precision: str) -> None:
    graph = Graph()
    x = graph.input("x", ir.DataType.FLOAT, [2, D])
    weight, bias = graph.initializer(UP.T, "weight"), graph.initializer(UP[:, 0].copy(), "bias")
    table = graph.initializer(np.ones((4, 3), np.int8), "integers")
    graph.output(ops.add(graph, ops.matmul(graph, x, weight), bias), "y")
    graph.output(ops.gather(graph, table, graph.input("ids", ir.DataType.INT64, [2])), "z")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.matmul_to_linear(model)
    report = passes.quantize(model, Recipe.of(precision))
    assert [weight.name for weight in report.weights] == ["weight"]
    assert bias.dtype == ir.DataType.FLOAT
    assert table.dtype == ir.DataType.INT8


def test_infinities_name_the_weight() -> None:
    table = TABLE.copy()
    table[3, 4] = np.inf
    with pytest.raises(ConfigError, match=r"model\.embed\.weight holds inf in row 3, column 4"):
        passes.quantize(built(table=table), Recipe.of("int4"))


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_each_array_is_told_when_it_is_done_with(precision: str) -> None:
    seen: list[np.ndarray] = []
    passes.quantize(built(), Recipe.of(precision), done=seen.append)
    assert len(seen) == 5
    assert any(np.shares_memory(array, TABLE) for array in seen)
