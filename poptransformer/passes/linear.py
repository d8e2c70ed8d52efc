# SPDX-License-Identifier: Apache-2.0
"""Turns products with a weight into `Linear`, which takes the weight as checkpoints hold it, `[N, K]`.

Layers multiply by `weight.T`, a view. onnxruntime's MatMul would need the transposed bytes: a copy of the whole
model. `Linear` reads the original ones, straight out of the memory-mapped file.
"""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.graph import DOMAIN, WeightTensor


def matmul_to_linear(model: ir.Model) -> None:
    """Rewrites `MatMul(x, W)` where W `[K, N]` is a weight, or the transpose of a weight."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "MatMul" or node.domain:
            continue
        weight = _transposed_weight(graph, node.inputs[1])
        if weight is not None:
            _replace(graph, node, weight)


def _transposed_weight(graph: ir.Graph, operand: ir.Value | None) -> ir.Value | None:
    """Returns the weight `[N, K]` whose transpose `operand` is, or None."""
    if operand is None:
        return None
    producer = operand.producer()
    if producer is not None:
        source = producer.inputs[0] if producer.op_type == "Transpose" else None
        if source is None or _matrix(source) is None:
            return None
        perm = producer.attributes.get("perm")  # without one, a Transpose reverses the dimensions
        return source if perm is None or list(perm.as_ints()) == [1, 0] else None
    matrix = _matrix(operand)
    if matrix is None or any(use.node.op_type != "MatMul" or use.idx != 1 for use in operand.uses()):
        return None
    return _transpose_initializer(graph, operand, matrix)


def _matrix(value: ir.Value) -> WeightTensor | None:
    """The weight behind `value`, where it is an fp32 matrix."""
    tensor = value.const_value
    if isinstance(tensor, WeightTensor) and tensor.array.ndim == 2 and tensor.dtype == ir.DataType.FLOAT:
        return tensor
    return None


def _transpose_initializer(graph: ir.Graph, value: ir.Value, matrix: WeightTensor) -> ir.Value:
    """Registers the transpose of a weight beside it; the original goes when its last product has been rewritten."""
    name = f"{value.name}.T"
    if name not in graph.initializers:
        tensor = WeightTensor(matrix.array.T, ir.DataType.FLOAT, name)
        shape = ir.Shape(tensor.array.shape)
        graph.register_initializer(
            ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    x, operand = node.inputs
    name = (node.name or "MatMul").removesuffix("MatMul") + "Linear"
    linear = ir.Node(DOMAIN, "Linear", [x, weight], version=1, name=name, metadata_props=dict(node.metadata_props))
    output, old = linear.outputs[0], node.outputs[0]
    output.name, output.type, output.shape = old.name, old.type, old.shape
    graph.insert_before(node, linear)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if operand is None or operand.uses():
        return
    producer = operand.producer()
    if producer is not None:
        graph.remove(producer, safe=True)
    else:
        _take_over_name(graph, operand, weight)


def _take_over_name(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Gives the transposed weight the name that the checkpoint has for these bytes."""
    name = str(old.name)
    del graph.initializers[name]
    del graph.initializers[str(new.name)]
    new.name = name
    if new.const_value is not None:
        new.const_value.name = name
    graph.register_initializer(new)
