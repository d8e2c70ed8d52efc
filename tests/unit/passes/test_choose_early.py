# SPDX-License-Identifier: Apache-2.0
"""The choice of tokens moves up to what mixes rows, and nothing that is seen changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import ops, passes
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session

D, L = 16, 4
X = np.random.default_rng(0).standard_normal((2, L, D)).astype(np.float32)
POSITIONS = {"last": [[3], [1]], "two": [[0, 3], [2, 2]], "all": [[0, 1, 2, 3]] * 2, "none": [[], []]}
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class Layers:
    """Pieces of a decoder with random weights."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.random = np.random.default_rng(1)
        self.count = 0

    def product(self, x: ir.Value, stage: int | None = None) -> ir.Value:
        self.count += 1
        weight = self.random.standard_normal((D, D)).astype(np.float32) / 4
        with self.graph.nameScope(f"product{self.count}"), self.graph.annotate(pipeline_stage=stage):
            return ops.matmul(self.graph, x, self.graph.initializer(weight, f"weight{self.count}"))

    def mixed(self, x: ir.Value) -> ir.Value:
        """Something that sees all rows."""
        return ops.add(self.graph, x, self.graph.op("ReduceMean", x, self.graph.initializer(np.array([1]), "axis")))

    def added(self, x: ir.Value, y: ir.Value, stage: int | None = None) -> ir.Value:
        with self.graph.annotate(pipeline_stage=stage):
            return ops.add(self.graph, x, y)


Make = Callable[[Layers, ir.Value], ir.Value]


def block(layers: Layers, x: ir.Value) -> ir.Value:
    """An attention's output product with its residual, and an MLP with its own."""
    x = layers.added(layers.product(layers.mixed(x)), x)
    return layers.added(layers.product(ops.relu(layers.graph, layers.product(x))), x)


def straight(layers: Layers, x: ir.Value) -> ir.Value:
    return layers.product(ops.relu(layers.graph, layers.product(layers.mixed(x))))


def seen(layers: Layers, x: ir.Value) -> ir.Value:
    """The last product's input is an output too, and so needed as a whole."""
    x = layers.added(layers.product(layers.mixed(x)), x)
    layers.graph.output(x, "seen")
    return layers.product(x)


def read_elsewhere(layers: Layers, x: ir.Value) -> ir.Value:
    x = layers.product(layers.mixed(x))
    layers.graph.output(ops.relu(layers.graph, x), "other")
    return layers.product(x)


def nothing(layers: Layers, x: ir.Value) -> ir.Value:
    return layers.mixed(x)


def on_another_stage(layers: Layers, x: ir.Value) -> ir.Value:
    return layers.added(layers.product(layers.product(layers.mixed(x), stage=0), stage=1), x, stage=1)


CASES: list[tuple[Make, int, int]] = [  # with how many choices, and how many nodes of ours behind them
    (block, 2, 3),
    (straight, 1, 2),
    (seen, 1, 1),
    (read_elsewhere, 1, 1),
    (nothing, 1, 0),
    (on_another_stage, 2, 1),
]
IDS = [make.__name__ for make, _, _ in CASES]


def built(make: Make, early: bool) -> ir.Model:
    graph = Graph()
    x = graph.input("x", FLOAT, ["batch", "tokens", D])
    positions = graph.input("positions", INT64, ["batch", "chosen"])
    y = make(Layers(graph), x)
    with graph.nameScope("step"):
        y = ops.gather_nd(graph, y, ops.unsqueeze(graph, positions, [2]), batch_dims=1)
    graph.output(y, "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.matmul_to_linear(model)
    passes.fuse(model)
    if early:
        passes.choose_early(model)
    passes.attach_functions(model)
    passes.name_nested_functions(model)
    return model


def behind_choices(model: ir.Model) -> int:
    """Nodes of ours that read chosen rows alone."""
    few = {value for node in model.graph if node.op_type == "GatherND" for value in node.outputs}
    for node in model.graph:
        if node.domain and any(value in few for value in node.inputs):
            few.update(node.outputs)
    return sum(1 for node in model.graph if node.domain and node.outputs[0] in few)


@pytest.mark.parametrize(("make", "choices", "behind"), CASES, ids=IDS)
def test_the_choice_moves_up(make: Make, choices: int, behind: int) -> None:
    model = built(make, early=True)
    assert sum(1 for node in model.graph if node.op_type == "GatherND") == choices
    assert behind_choices(model) == behind


@pytest.mark.parametrize("chosen", POSITIONS)
@pytest.mark.parametrize("make", [make for make, _, _ in CASES], ids=IDS)
def test_results_are_the_same(make: Make, chosen: str) -> None:
    feeds = {"x": X, "positions": np.array(POSITIONS[chosen], np.int64).reshape(2, -1)}
    expected, found = (
        make_session(built(make, early), SessionSettings(threads=1)).run(None, feeds) for early in (False, True)
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_shapes_follow() -> None:
    (y,) = built(block, early=True).graph.outputs
    assert y.name == "y"
    assert [str(dim) for dim in y.shape or []] == ["batch", "chosen", str(D)]
