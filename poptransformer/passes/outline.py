# SPDX-License-Identifier: Apache-2.0
"""Makes an ONNX function of some nodes of a graph, so that one node can stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from poptransformer.errors import GraphError
from poptransformer.graph import DOMAIN


class Outliner:
    """Functions of one op of our domain, each an overload of it; equal bodies share one.

    Args:
        model: gets the functions.
        op_type: name of the op.
        inputs: names of the op's inputs.
        attributes: the op's attributes. The bodies read none of them: theirs are those of the nodes they are made of.
    """

    def __init__(
        self, model: ir.Model, op_type: str, inputs: Sequence[str], attributes: Mapping[str, ir.AttributeType]
    ) -> None:
        self.model = model
        self.op_type = op_type
        self.inputs = inputs
        self.attributes = attributes
        self._overloads: dict[object, str] = {}

    def overload(
        self, name: str, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> str:
        """Returns the overload whose body is `nodes`.

        Args:
            name: what to call it; numbered where a different body has that name.
            nodes: in the graph's order; they read nothing but `inputs`, each other, and initializers.
            inputs: what the nodes read, one value for each input of the op as far as there are any. Other initializers
                become constants of the body.
            outputs: values of the nodes that are read elsewhere.
        """
        constants = _constants(nodes, inputs)
        key = _structure(nodes, inputs, constants, outputs)
        if key not in self._overloads:
            taken = set(self._overloads.values())
            candidates = [name, *(f"{name}_{number}" for number in range(2, len(taken) + 3))]
            overload = next(candidate for candidate in candidates if candidate not in taken)
            function = self._function(overload, nodes, inputs, constants, outputs)
            self.model.functions[function.identifier()] = function
            self._overloads[key] = overload
        return self._overloads[key]

    def _function(
        self,
        overload: str,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value | None],
        constants: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
    ) -> ir.Function:
        formal = [ir.Value(name=name) for name in self.inputs[: len(inputs)]]
        inside: dict[ir.Value, ir.Value] = {}
        for actual, value in zip(inputs, formal, strict=True):
            if actual is not None:
                inside.setdefault(actual, value)
        body = [_constant_node(value, f"Constant_{number}", inside) for number, value in enumerate(constants)]
        body += [_copy(node, f"{node.op_type}_{number}", inside) for number, node in enumerate(nodes)]
        graph = ir.Graph(
            formal,
            [inside[value] for value in outputs],
            nodes=body,
            name=f"{self.op_type}_{overload}",
            opset_imports=dict(self.model.graph.opset_imports),
        )
        attributes = [ir.Attr(name, kind, None) for name, kind in self.attributes.items()]
        return ir.Function(DOMAIN, self.op_type, overload, graph=graph, attributes=attributes)


def _constants(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
    """What the nodes read besides `inputs` and each other."""
    known = {*inputs, *(value for node in nodes for value in node.outputs), None}
    return list(dict.fromkeys(v for node in nodes for v in node.inputs if v is not None and v not in known))


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise GraphError(f"A function body cannot hold {value.name}, which is not constant; pass it as an input.")
    return value.const_value


def _constant_node(value: ir.Value, name: str, inside: dict[ir.Value, ir.Value]) -> ir.Node:
    tensor = ir.tensor(_tensor(value).numpy())
    node = ir.Node("", "Constant", [], [ir.Attr("value", ir.AttributeType.TENSOR, tensor)], name=name)
    node.outputs[0].name = f"{name}_0"
    inside[value] = node.outputs[0]
    return node


def _copy(node: ir.Node, name: str, inside: dict[ir.Value, ir.Value]) -> ir.Node:
    """A copy that reads what `inside` has in place of the node's inputs; adds its outputs there."""
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else inside[value] for value in node.inputs],
        list(node.attributes.values()),
        overload=node.overload,
        num_outputs=len(node.outputs),
        name=name,
    )
    for number, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
        new.name = f"{name}_{number}"
        inside[old] = new
    return copy


def _structure(
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value | None],
    constants: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
) -> object:
    """Equal for nodes whose functions are the same, names apart."""
    numbers: dict[ir.Value | None, int] = {None: -1}
    for number, value in enumerate((*inputs, *constants, *(v for node in nodes for v in node.outputs))):
        numbers.setdefault(value, number)
    parts: list[Any] = [len(inputs)]
    parts += [(tensor.dtype, tuple(tensor.shape), tensor.tobytes()) for tensor in map(_tensor, constants)]
    for node in nodes:
        attributes = sorted((a.name, a.type.name, repr(a.value)) for a in node.attributes.values())
        reads = tuple(numbers[value] for value in node.inputs)
        parts.append((node.domain, node.op_type, node.overload, tuple(attributes), reads, len(node.outputs)))
    return (*parts, tuple(numbers[value] for value in outputs))
