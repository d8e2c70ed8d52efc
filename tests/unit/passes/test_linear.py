# SPDX-License-Identifier: Apache-2.0
"""`MatMul` with a weight becomes `Linear` over the bytes that the checkpoint holds; everything else stays."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import ops, passes
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session

FLOAT = ir.DataType.FLOAT
K, N = 4, 6
X = np.random.default_rng(0).standard_normal((2, 3, K)).astype(np.float32)
STORED = np.random.default_rng(1).standard_normal((N, K)).astype(np.float32)  # as torch.nn.Linear holds it


def built(make: Callable[[Graph, ir.Value], ir.Value]) -> ir.Model:
    """A model `x -> y`, after the pass."""
    graph = Graph()
    with graph.nameScope("layer"), graph.annotate(ipu=3):
        y = make(graph, graph.input("x", FLOAT, ["batch", 3, K]))
    graph.output(y, "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.matmul_to_linear(model)
    return model


def run(model: ir.Model, use_native: bool = True) -> np.ndarray:
    passes.attach_functions(model)
    return make_session(model, SessionSettings(threads=1, use_native=use_native)).run(["y"], {"x": X})[0]


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def check(model: ir.Model, expected: np.ndarray) -> None:
    for use_native in (True, False):
        np.testing.assert_allclose(run(model, use_native), expected, atol=1e-5, rtol=0)


def test_a_transposed_view_keeps_the_checkpoints_bytes() -> None:
    model = built(lambda g, x: ops.matmul(g, x, g.initializer(STORED.T, "layer.weight")))
    weight = model.graph.initializers["layer.weight"]
    assert op_types(model) == ["Linear"]
    assert np.shares_memory(weight.const_value.numpy(), STORED)
    assert list(weight.shape) == [N, K]
    assert list(model.graph.initializers) == ["layer.weight"]
    check(model, X @ STORED.T)


def test_a_weight_stored_the_other_way_is_transposed_when_it_is_read() -> None:
    """GPT-2's Conv1D holds `[K, N]`."""
    stored = np.ascontiguousarray(STORED.T)
    model = built(lambda g, x: ops.matmul(g, x, g.initializer(stored, "layer.weight")))
    assert op_types(model) == ["Linear"]
    assert np.shares_memory(model.graph.initializers["layer.weight"].const_value.array, stored)
    check(model, X @ STORED.T)


@pytest.mark.parametrize("perm", [[1, 0], None])
def test_a_transpose_in_the_graph(perm: list[int] | None) -> None:
    model = built(lambda g, x: ops.matmul(g, x, g.op("Transpose", g.initializer(STORED, "w"), perm=perm)))
    assert op_types(model) == ["Linear"]
    check(model, X @ STORED.T)


def test_a_transpose_that_changes_nothing_is_none() -> None:
    square = np.eye(K, dtype=np.float32) * 2
    model = built(lambda g, x: ops.matmul(g, x, ops.transpose(g, g.initializer(square, "w"), [0, 1])))
    assert op_types(model) == ["Transpose", "MatMul"]
    check(model, 2 * X)


def test_one_table_for_lookup_and_product() -> None:
    table = np.random.default_rng(2).standard_normal((9, K)).astype(np.float32)

    def tied(g: Graph, x: ir.Value) -> ir.Value:
        weight = g.initializer(table, "wte.weight")
        hidden = ops.add(g, x, ops.gather(g, weight, ops.constant(g, [1, 8, 0])))
        return ops.matmul(g, hidden, ops.transpose(g, weight, [1, 0]))

    model = built(tied)
    assert "Transpose" not in op_types(model)
    assert list(model.graph.initializers) == ["wte.weight"]
    assert np.shares_memory(model.graph.initializers["wte.weight"].const_value.numpy(), table)
    check(model, (X + table[[1, 8, 0]]) @ table.T)


def test_a_transpose_with_two_products_and_another_use() -> None:
    def several(g: Graph, x: ir.Value) -> ir.Value:
        weight = ops.transpose(g, g.initializer(STORED, "w"), [1, 0])
        once, twice = ops.matmul(g, x, weight), ops.matmul(g, ops.mul(g, x, 2.0), weight)
        return ops.add(g, ops.add(g, once, twice), ops.reduce_max(g, weight, [0]))

    model = built(several)
    assert op_types(model).count("Linear") == 2
    assert op_types(model).count("Transpose") == 1  # for the maximum
    check(model, 3 * X @ STORED.T + STORED.max(1))


def test_a_weight_with_two_products() -> None:
    def twice(g: Graph, x: ir.Value) -> ir.Value:
        weight = g.initializer(STORED.T, "w")
        return ops.add(g, ops.matmul(g, x, weight), ops.matmul(g, ops.mul(g, x, 2.0), weight))

    model = built(twice)
    assert op_types(model).count("Linear") == 2
    assert "w" in model.graph.initializers
    assert "w.T" not in model.graph.initializers
    check(model, 3 * X @ STORED.T)


def test_a_weight_with_another_use_stays_as_it_is() -> None:
    def also_added(g: Graph, x: ir.Value) -> ir.Value:
        weight = g.initializer(STORED.T, "w")
        return ops.add(g, ops.matmul(g, x, weight), ops.reduce_max(g, weight, [0]))

    model = built(also_added)
    assert "Linear" not in op_types(model)
    check(model, X @ STORED.T + STORED.max(1))


def test_a_weight_on_the_left_stays() -> None:
    left = STORED[:, :3].copy()
    model = built(lambda g, x: ops.matmul(g, g.initializer(left, "w"), x))
    assert op_types(model) == ["MatMul"]
    check(model, left @ X)


def test_a_weight_on_both_sides() -> None:
    square = STORED[:K]

    def both(g: Graph, x: ir.Value) -> ir.Value:
        weight = g.initializer(square, "w")
        return ops.matmul(g, x, ops.matmul(g, weight, weight))

    model = built(both)
    assert "Linear" not in op_types(model)
    check(model, X @ (square @ square))


@pytest.mark.parametrize("shape", [(K,), (2, K, N), (1, K, N)])
def test_vectors_and_stacks_stay(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    model = built(lambda g, x: ops.matmul(g, x, g.initializer(weight, "w")))
    assert op_types(model) == ["MatMul"]
    check(model, X @ weight)


def test_activations_stay() -> None:
    model = built(lambda g, x: ops.matmul(g, x, ops.transpose(g, x, [0, 2, 1])))
    assert op_types(model) == ["Transpose", "MatMul"]
    check(model, X @ X.swapaxes(1, 2))


def test_computed_weights_stay() -> None:
    model = built(lambda g, x: ops.matmul(g, x, ops.mul(g, g.initializer(STORED.T, "w"), 0.5)))
    assert op_types(model) == ["Mul", "MatMul"]
    check(model, 0.5 * X @ STORED.T)


def test_a_product_in_a_loop_stays() -> None:
    square = STORED[:K]

    def looped(g: Graph, x: ir.Value) -> ir.Value:
        weight = g.initializer(square, "w")
        number, go_on = ir.val("number", ir.DataType.INT64, []), ir.val("go_on", ir.DataType.BOOL, [])
        state = ir.val("state", FLOAT, ["batch", 3, K])
        body = g.subgraph(lambda _n, c, s: [c, ops.matmul(g, s, weight)], [number, go_on, state])
        return ops.loop(g, ops.constant(g, 2), ops.constant(g, True), [x], body)

    model = built(looped)
    check(model, X @ square @ square)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_weights_are_widened_by_the_product(dtype: type) -> None:
    stored = STORED.astype(dtype)
    model = built(lambda g, x: ops.matmul(g, x, g.initializer(stored.T, "w")))
    passes.store_weights(model, "fp32")
    assert np.shares_memory(model.graph.initializers["w"].const_value.numpy(), stored)
    check(model, X @ stored.astype(np.float32).T)


def test_names_placement_and_outputs_are_kept() -> None:
    model = built(lambda g, x: ops.matmul(g, x, g.initializer(STORED.T, "w")))
    (node,) = model.graph
    assert node.name == "layer/Linear"
    assert dict(node.metadata_props) == {"ipu": "3"}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert list(model.graph.outputs[0].shape) == ["batch", 3, N]
    assert model.graph.outputs[0].dtype == FLOAT


def test_the_passes_can_run_twice() -> None:
    model = built(lambda g, x: ops.matmul(g, x, g.initializer(STORED.T, "w")))
    for _ in range(2):
        passes.matmul_to_linear(model)
        passes.store_weights(model, "fp16")
    check(model, X @ STORED.astype(np.float16).astype(np.float32).T)
