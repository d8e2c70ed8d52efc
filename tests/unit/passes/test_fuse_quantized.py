# SPDX-License-Identifier: Apache-2.0
"""Products with packed weights are fused as those with float ones; the kernels of both graphs give the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import native, ops
from poptransformer.graph import DOMAIN
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session
from tests.custom_ops.packed_weight import draw_weight
from tests.unit.passes.fusing import FLOAT, D, Layers, Make, X, attributes, built, fused, op_types, run

FUSED = "FusedLinear"


def product(layers: Layers, x: ir.Value, columns: int, kind: str = "int4", bias: bool = False, **more: Any) -> ir.Value:
    """`QuantizedLinear` with a weight of its own; `kind` is a format, `int4-offsets` int4 with offsets."""
    layers.count += 1
    format = kind.removesuffix("-offsets")
    weight = draw_weight(format, columns, x.shape[-1], 32, kind != format, seed=layers.count)
    packed = weight.packed()
    inputs = [
        None if packed.get(name) is None else layers.graph.initializer(packed[name], f"weight{layers.count}.{name}")
        for name in ("codes", "scales", "offsets")
    ]
    for value in inputs[1:]:  # an initializer of floats is fp32 to layers
        if value is not None:
            value.dtype, value.const_value = ir.DataType.FLOAT16, ir.tensor(value.const_value.array, name=value.name)
    inputs.append(layers.weight(columns) if bias else None)
    y = layers.graph.op("QuantizedLinear", x, *inputs, domain=DOMAIN, format=format, columns=columns, **more)
    y.dtype, y.shape = FLOAT, ir.Shape([*x.shape[:-1], columns])
    return y


def check(make: Make, *expected: str) -> list[ir.Node]:
    """Compares the kernels of the fused and the plain graph; returns the nodes, of the types `expected`."""
    model = fused(make)
    assert op_types(model) == list(expected)
    if native.available():
        for y, wanted in zip(run(model, True), run(built(make), True), strict=True):
            np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    return list(model.graph)


@pytest.mark.parametrize("kinds", [("int4",) * 3, ("int4-offsets",) * 3, ("int8",) * 3, ("int8", "int4", "fp32")])
def test_queries_keys_and_values(kinds: Sequence[str]) -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        normed = layers.rms(x)
        return [layers.linear(normed) if kind == "fp32" else product(layers, normed, 20, kind) for kind in kinds]

    (node,) = check(make, FUSED)
    formats = [kind.removesuffix("-offsets").replace("fp32", "float") for kind in kinds]
    assert attributes(node)["formats"] == " ".join(formats)
    assert node.overload == "_".join(["rms", *formats])


@pytest.mark.parametrize("bias", ["inside", "node", "none"])
def test_a_gated_mlp(bias: str) -> None:
    """A bias may be the product's own or a node after it."""

    def make(layers: Layers, x: ir.Value) -> ir.Value:
        graph, normed = layers.graph, layers.rms(x)

        def linear(x: ir.Value, columns: int) -> ir.Value:
            y = product(layers, x, columns, bias=bias == "inside")
            return ops.add(graph, y, layers.weight(columns)) if bias == "node" else y

        gate, up = linear(normed, 50), linear(normed, 50)
        return ops.add(graph, x, linear(ops.mul(graph, ops.swish(graph, gate), up), D))

    nodes = check(make, FUSED, FUSED)
    assert (nodes[0].inputs[7] is not None) == (bias != "none")


def test_weights_are_cut_between_tiles() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        return ops.split(layers.graph, product(layers, x, 16 + 32 + 9, bias=True), [16, 32, 9])

    (node,) = check(make, FUSED)
    assert attributes(node)["columns"] == (16, 32, 9)


def test_weights_are_not_cut_inside_of_tiles() -> None:
    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        return ops.split(layers.graph, product(layers, x, 48), [24, 24])

    check(make, "QuantizedLinear", "Split")


def test_a_product_with_more_attributes_means_something_else() -> None:
    def make(layers: Layers, x: ir.Value) -> ir.Value:
        return ops.relu(layers.graph, product(layers, x, 16, rounding="up"))

    assert op_types(fused(make)) == ["QuantizedLinear", "Relu"]


def test_weights_are_shared_with_onnxruntime_not_copied() -> None:
    if not native.available():
        pytest.skip("the custom ops are not built: run `make`")

    def make(layers: Layers, x: ir.Value) -> list[ir.Value]:
        normed = layers.rms(x)
        return [product(layers, normed, 64, "int8"), layers.linear(normed, 64)]

    model = fused(make)
    session = make_session(model, SessionSettings(threads=1))
    before = session.run(None, {"x": X})
    arrays = {name: array for name, (array, _) in session.weight_store._held.items() if array.nbytes >= 1024}
    arrays["weight2.codes"][:] = 128  # the code of zero
    arrays["weight3"] *= 2
    after = session.run(None, {"x": X})
    np.testing.assert_array_equal(after[0], np.zeros_like(before[0]))
    np.testing.assert_allclose(after[1], 2 * before[1], rtol=1e-6)
