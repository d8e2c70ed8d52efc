# SPDX-License-Identifier: Apache-2.0
"""Replaces the nodes that read a weight by those that read it packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.matrices import Matrix
from poptransformer.quantization import FORMATS, PackedWeight


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How the inputs of a product are rounded.

    Attributes:
        format: an 8-bit float.
        scaling: how a row's scale is found: `amax` or `power_of_two`.
        scale: the scale of all rows, where it is known beforehand.
    """

    format: str
    scaling: str
    scale: float | None = None


def static_scale(largest: float, format: str, scaling: str) -> float:
    """Returns the scale by which `largest` comes to the largest value of an 8-bit float."""
    scale = max(largest / FORMATS[format].largest, 2.0**-120)
    return 2.0 ** math.ceil(math.log2(scale)) if scaling == "power_of_two" else scale


def pack_matrix(graph: ir.Graph, matrix: Matrix, packed: PackedWeight) -> list[ir.Node]:
    """Makes every node that reads `matrix` read `packed`, and removes the matrix.

    Args:
        graph: the graph to change.
        matrix: a weight that can be packed.
        packed: the same weight, quantized.

    Returns:
        The nodes that multiply by it.
    """
    parts = {"codes": packed.codes, "scales": packed.scales, "offsets": packed.offsets}
    inputs = [_initializer(graph, f"{matrix.name}.{part}", array) for part, array in parts.items() if array is not None]
    attributes: dict[str, Any] = {"format": packed.format, "columns": packed.columns}
    products = [_replace(node, "QuantizedLinear", [node.inputs[0], *inputs], attributes) for node in matrix.products]
    for node in matrix.lookups:
        _replace(node, "QuantizedEmbedding", [_ids(node), *inputs], {**attributes, "depth": packed.depth})
    del graph.initializers[matrix.name]
    return products


def round_activations(graph: ir.Graph, rounded: Mapping[ir.Node, Rounding]) -> None:
    """Puts a `RoundToFloat8` before the first input of nodes; those of equal input and rounding share one.

    Args:
        graph: the graph to change.
        rounded: the nodes and how their inputs are rounded.
    """
    known: dict[tuple[ir.Value | None, Rounding], ir.Value] = {}
    for node in list(graph):
        if node not in rounded:
            continue
        key = node.inputs[0], rounded[node]
        if key not in known:
            known[key] = _rounded_input(graph, node, rounded[node])
        node.replace_input_with(0, known[key])


def _rounded_input(graph: ir.Graph, node: ir.Node, rounding: Rounding) -> ir.Value:
    """Adds a `RoundToFloat8` of the first input of `node` before it."""
    x, layer = node.inputs[0], _layer(node)
    inputs = [x]
    if rounding.scale is not None:
        scale = np.array(rounding.scale, np.float32)
        inputs.append(_initializer(graph, f"{layer.replace('/', '.')}.input_scale", scale))
    attributes = {"format": rounding.format, "scaling": rounding.scaling}
    new = _node("RoundToFloat8", inputs, attributes, f"{layer}/RoundToFloat8", node)
    output = new.outputs[0]
    output.name = f"{new.name}_output"
    if x is not None:
        output.type, output.shape = x.type, x.shape
    graph.insert_before(node, new)
    return output


def _ids(lookup: ir.Node) -> ir.Value | None:
    """The indices of a lookup, as int64."""
    ids = lookup.inputs[1]
    if ids is None or ids.dtype == ir.DataType.INT64:
        return ids
    cast = ir.node("Cast", [ids], attributes={"to": int(ir.DataType.INT64)}, name=f"{lookup.name}/Cast")
    cast.outputs[0].name = f"{lookup.name}_ids"
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ids.shape
    _graph_of(lookup).insert_before(lookup, cast)
    return cast.outputs[0]


def _replace(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any]) -> ir.Node:
    layer = _layer(node)
    new = _node(op_type, inputs, attributes, f"{layer}/{op_type}" if layer else op_type, node)
    old, output = node.outputs[0], new.outputs[0]
    output.name, output.type, output.shape = old.name, old.type, old.shape
    graph = _graph_of(node)
    graph.insert_before(node, new)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return new


def _layer(node: ir.Node) -> str:
    """The scope of a node's name, `model/layers.3/mlp/up_proj`."""
    return str(node.name).rpartition("/")[0]


def _node(op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any], name: str, like: ir.Node) -> ir.Node:
    """A node of ours in the place and with the metadata of another."""
    given = ir.convenience.convert_attributes(attributes)
    metadata = dict(like.metadata_props)
    return ir.Node(DOMAIN, op_type, inputs, given, version=1, name=name, metadata_props=metadata)


def _graph_of(node: ir.Node) -> Any:
    """The graph that holds the node: the main one, or the body of a loop."""
    return node.graph


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
