# SPDX-License-Identifier: Apache-2.0
"""What the fuse pass puts together, and what it leaves alone."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from poptransformer import ops, passes
from poptransformer.layers.mlp import ACTIVATIONS
from poptransformer.passes.fuse_linear import SCOPES
from tests.unit.passes.fusing import FLOAT, D, Layers, N, attributes, built, check, fused, op_types

FUSED = "FusedLinear"


# -- what is fused ----------------------------------------------------------------------------------------------------


def test_a_norm_and_three_products() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        normed = layers.rms(x)
        return [layers.linear(normed, size, name=name) for size, name in ((N, "q"), (8, "k"), (9, "v"))]

    (node,) = check(make, FUSED)
    assert attributes(node) == {
        "norm": "rms",
        "epsilon": pytest.approx(1e-3),
        "activation": "none",
        "gated": 0,
        "formats": "float float float",
        "columns": (N, 8, 9),
        "splits": (1, 1, 1),
    }
    assert [value.name for value in node.outputs] == ["y0", "y1", "y2"]
    assert node.name == "block/FusedLinear"
    assert node.overload == "rms_float_float_float"
    scopes = json.loads(node.metadata_props[SCOPES])
    assert scopes == {
        "block/norm": [1, 2],
        "block/q": [4, 5, 6, 7],
        "block/k": [8, 9, 10, 11],
        "block/v": [12, 13, 14, 15],
    }


def test_products_whose_rows_come_from_elsewhere() -> None:
    (node,) = check(lambda layers, x: [layers.linear(x, bias=i == 1) for i in range(3)], FUSED)
    assert attributes(node)["norm"] == "none"
    assert node.inputs[1] is None and node.inputs[11] is not None


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm(bias: bool) -> None:
    (node,) = check(lambda layers, x: layers.linear(layers.layer_norm(x, bias), bias=True), FUSED)
    assert attributes(node)["norm"] == "layer"
    assert (node.inputs[2] is not None) == bias


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_that_layers_know(name: str) -> None:
    (node,) = check(lambda layers, x: ACTIVATIONS[name](layers.graph, layers.linear(x, bias=True)), FUSED)
    tanh_like = {"gelu_fast": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    assert attributes(node)["activation"] == {**tanh_like, "swish": "silu", "gelu_python": "gelu"}.get(name, name)


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_a_gated_mlp(name: str, gate_first: bool) -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        normed = layers.rms(x)
        first, second = layers.linear(normed, bias=True, name="gate"), layers.linear(normed, name="up")
        gate, up = (first, second) if gate_first else (second, first)
        activated = ACTIVATIONS[name](layers.graph, gate)
        gated = ops.mul(layers.graph, activated, up) if gate_first else ops.mul(layers.graph, up, activated)
        return ops.add(layers.graph, x, layers.linear(gated, D, bias=True, name="down"))

    gate, down = check(make, FUSED, FUSED)
    assert (attributes(gate)["activation"], attributes(gate)["gated"]) == (name, 1)
    assert gate.overload == f"rms_float_float_{name}_gated"
    assert down.inputs[3] is gate.inputs[0]
    assert down.overload == "float_residual"


def test_an_mlp_with_an_activation_and_a_residual() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        inner = ops.gelu(layers.graph, layers.linear(layers.layer_norm(x), bias=True))
        return ops.add(layers.graph, layers.linear(inner, D, bias=True), x)

    nodes = check(make, FUSED, FUSED)
    assert [node.overload for node in nodes] == ["layer_float_gelu", "float_residual"]


def test_an_activation_and_a_residual_of_one_product() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return ops.add(layers.graph, x, ops.relu(layers.graph, layers.linear(x, D)))

    (node,) = check(make, FUSED)
    assert node.inputs[0] is node.inputs[3]


def test_a_gate_and_a_residual() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        gate = ops.swish(layers.graph, layers.linear(x, D))
        return ops.add(layers.graph, ops.mul(layers.graph, gate, layers.linear(x, D)), x)

    (node,) = check(make, FUSED)
    assert node.overload == "float_float_silu_gated_residual"


@pytest.mark.parametrize("bias", [True, False])
def test_one_weight_for_queries_keys_and_values(bias: bool) -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        return ops.split(layers.graph, layers.linear(layers.layer_norm(x), 3 * 7, bias), [7, 7, 7])

    (node,) = check(make, FUSED)
    assert (attributes(node)["columns"], attributes(node)["splits"]) == ((7, 7, 7), (3,))
    assert len(node.outputs) == 3


@pytest.mark.parametrize("activated", [0, 1])
def test_one_weight_for_gate_and_up(activated: int) -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        pieces = ops.split(layers.graph, layers.linear(layers.rms(x), 2 * 9), [9, 9])
        gate = ops.swish(layers.graph, pieces[activated])
        return ops.mul(layers.graph, gate, pieces[1 - activated])

    (node,) = check(make, FUSED)
    assert attributes(node)["gated"] == 1 + activated


def test_parallel_attention_and_mlp() -> None:
    """GPT-NeoX: two residuals, one after the other."""

    def make(layers: Layers, x: ir.Value) -> ir.Value:
        attention = layers.linear(ops.tanh(layers.graph, layers.linear(layers.layer_norm(x), D)), D, bias=True)
        attended = ops.add(layers.graph, x, attention)
        mlp = layers.linear(ops.gelu(layers.graph, layers.linear(layers.layer_norm(x))), D, bias=True)
        return ops.add(layers.graph, attended, mlp)

    nodes = check(make, *[FUSED] * 4)
    assert sorted(node.overload for node in nodes) == [
        "float_residual",
        "float_residual",
        "layer_float_gelu",
        "layer_float_tanh",
    ]


def test_the_sum_of_two_products() -> None:
    """Both end in the same sum: it belongs to one of them, whose residual the other is."""

    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return ops.add(layers.graph, layers.linear(x, bias=True), layers.linear(ops.relu(layers.graph, x), bias=True))

    nodes = check(make, "Relu", FUSED, FUSED)
    assert sorted(node.overload for node in nodes[1:]) == ["float", "float_residual"]


def test_five_products_of_the_same_rows() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        return [layers.linear(x, 8) for _ in range(5)]

    nodes = check(make, FUSED, FUSED)
    assert [len(node.outputs) for node in nodes] == [3, 2]


def test_blocks_of_the_same_kind_share_a_function() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        for epsilon in (1e-3, 1e-3, 1e-2):
            normed = layers.rms(x, epsilon)
            x = ops.add(layers.graph, x, layers.linear(ops.swish(layers.graph, layers.linear(normed)), D))
        return x

    nodes = check(make, *[FUSED] * 6)
    assert [node.overload for node in nodes] == [
        *("rms_float_silu", "float_residual"),
        *("rms_float_silu", "float_residual"),
        *("rms_float_silu_2", "float_residual"),  # another epsilon
    ]


def test_a_body_consists_of_the_nodes_it_stands_for() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return ops.add(layers.graph, x, layers.linear(layers.rms(x), D, bias=True))

    model = fused(make)
    (function,) = model.functions.values()
    assert [node.op_type for node in function] == ["RMSNormalization", "Linear", "Add", "Add"]
    assert [value.name for value in function.inputs][:5] == ["x", "norm_weight", "norm_bias", "residual", "weight0"]
    passes.attach_functions(model)
    assert [name for _, name, _ in model.functions] == ["FusedLinear", "Linear"]


# -- what stays -------------------------------------------------------------------------------------------------------


def test_a_single_product_stays_a_linear() -> None:
    check(lambda layers, x: layers.linear(x), "Linear")


def test_a_norm_that_something_else_reads() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        normed = layers.rms(x)
        return [layers.linear(normed), layers.linear(normed), ops.relu(layers.graph, normed)]

    nodes = check(make, "RMSNormalization", FUSED, "Relu")
    assert attributes(nodes[1])["norm"] == "none"


def test_a_norm_that_is_an_output() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        normed = layers.rms(x)
        return [normed, layers.linear(normed)]

    check(make, "RMSNormalization", "Linear")


def test_a_norm_of_products_with_different_ends() -> None:
    """Each fused op would need the norm."""

    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        normed = layers.rms(x)
        return [layers.linear(normed), ops.relu(layers.graph, layers.linear(normed))]

    check(make, "RMSNormalization", "Linear", FUSED)


def test_a_norm_over_other_axes() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        graph = layers.graph
        return layers.linear(graph.op("LayerNormalization", x, layers.weight(3, D), axis=-2), bias=True)

    check(make, "LayerNormalization", FUSED)


def test_a_norm_with_one_weight_for_all_columns() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return layers.linear(layers.graph.op("RMSNormalization", x, layers.weight(1), axis=-1))

    check(make, "RMSNormalization", "Linear")


def test_a_norm_whose_deviation_is_read() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        graph = layers.graph
        normed, _, deviation = graph.op("LayerNormalization", x, layers.weight(D), axis=-1, outputs=3)
        return [layers.linear(normed), deviation]

    check(make, "LayerNormalization", "Linear")


@pytest.mark.parametrize("shape", [(1,), (1, N), (3, N)], ids=str)
def test_a_sum_that_is_no_bias(shape: tuple[int, ...]) -> None:
    check(lambda layers, x: ops.add(layers.graph, layers.linear(x), layers.weight(*shape)), "Linear", "Add")


def test_a_sum_that_broadcasts_is_no_residual() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return ops.add(layers.graph, layers.linear(x, D), ops.reduce_max(layers.graph, x, [1]))

    check(make, "Linear", "ReduceMax", "Add")


def test_a_residual_of_unknown_shape_stays() -> None:
    """It might be broadcast."""

    def make(layers: Layers, x: ir.Value) -> ir.Value:
        other = ops.relu(layers.graph, x)
        other.shape = ir.Shape([None, 3, D])
        return ops.add(layers.graph, layers.linear(x, D), other)

    check(make, "Relu", "Linear", "Add")


def test_twice_a_product() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        y = layers.linear(x, D)
        return ops.add(layers.graph, y, y)

    check(make, "Linear", "Add")


def test_a_product_that_is_read_twice() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        y = layers.linear(x, D, bias=True)
        return [ops.relu(layers.graph, y), ops.add(layers.graph, x, y)]

    check(make, FUSED, "Relu", "Add")


def test_a_product_that_is_an_output_as_well() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        y = layers.linear(x, D)
        return [y, ops.relu(layers.graph, y)]

    check(make, "Linear", "Relu")


def test_gates_that_do_not_fit() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        graph = layers.graph
        other = ops.mul(graph, x, 2.0)
        of_other_rows = ops.mul(graph, ops.swish(graph, layers.linear(x)), layers.linear(other))
        broadcast = ops.mul(graph, ops.swish(graph, layers.linear(x, N)), layers.linear(x, 1))
        return [of_other_rows, broadcast]

    check(make, "Mul", FUSED, "Linear", "Mul", FUSED, "Linear", "Mul")


def test_a_square() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        gate = ops.swish(layers.graph, layers.linear(x))
        return ops.mul(layers.graph, gate, gate)

    check(make, FUSED, "Mul")


def test_a_swish_of_another_slope() -> None:
    check(lambda layers, x: layers.graph.op("Swish", layers.linear(x), alpha=1.7), "Linear", "Swish")


@pytest.mark.parametrize(("axis", "sizes"), [(1, [1, 2]), (2, [8] * 5), (-1, [8] * 5)])
def test_splits_that_stay(axis: int, sizes: list[int]) -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        return ops.split(layers.graph, layers.linear(x, N, bias=True), sizes, axis)

    check(make, FUSED, "Split")


def test_weights_that_are_computed() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        graph = layers.graph
        weight = ops.mul(graph, layers.weight(N, D), 2.0)
        return [ops.linear(graph, x, weight), ops.linear(graph, x, weight)]

    check(make, "Mul", "Linear", "Linear")


def test_products_in_a_subgraph_stay() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        graph, normed = layers.graph, layers.rms(x)
        body = graph.subgraph(lambda: [layers.linear(normed, bias=True)], [])
        other = graph.subgraph(lambda: [layers.linear(x)], [])
        y = graph.op("If", ops.constant(graph, True), then_branch=body, else_branch=other)
        y.dtype, y.shape = FLOAT, ir.Shape(["batch", 3, N])
        return y

    model = fused(make)
    assert op_types(model) == ["RMSNormalization", "Constant", "If"]


# -- placement --------------------------------------------------------------------------------------------------------


def placed(*stages: int | None) -> ir.Model:
    """Norm, gate, up and the rest of an MLP, each on its stage."""

    def make(layers: Layers, x: ir.Value) -> ir.Value:
        graph = layers.graph
        norm, gate, up, rest = stages
        with graph.annotate(pipeline_stage=norm):
            normed = layers.rms(x)
        with graph.annotate(pipeline_stage=gate, amp=1):
            left = layers.linear(normed)
        with graph.annotate(pipeline_stage=up, amp=2):
            right = layers.linear(normed)
        with graph.annotate(pipeline_stage=rest):
            return ops.mul(graph, ops.swish(graph, left), right)

    return fused(make)


def test_what_lies_together_is_fused_and_stays_there() -> None:
    (node,) = placed(1, 1, 1, 1).graph
    assert node.metadata_props["pipeline_stage"] == "1"
    assert "amp" not in node.metadata_props  # not the same for all


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ((0, 1, 1, 1), ["RMSNormalization", FUSED]),
        ((0, 0, 1, 1), ["RMSNormalization", "Linear", "Linear", "Swish", "Mul"]),
        ((1, 1, 1, 2), [FUSED, "Swish", "Mul"]),
        ((None, None, None, 0), [FUSED, "Swish", "Mul"]),
    ],
)
def test_nothing_is_fused_across_stages(stages: tuple[int | None, ...], expected: list[str]) -> None:
    assert op_types(placed(*stages)) == expected


def test_ipus_keep_apart_too() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        with layers.graph.virtualGraph(1):
            y = layers.linear(x, D)
        with layers.graph.virtualGraph(2):
            return ops.add(layers.graph, x, y)

    assert op_types(fused(make)) == ["Linear", "Add"]


def test_fusing_twice_changes_nothing_more() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return ops.add(layers.graph, x, layers.linear(layers.rms(x), D))

    model = fused(make)
    passes.fuse(model)
    assert op_types(model) == [FUSED]
    assert op_types(built(make)) == ["RMSNormalization", "Linear", "Add"]
