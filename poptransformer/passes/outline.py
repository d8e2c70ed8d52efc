# SPDX-License-Identifier: Apache-2.0
"""Makes an ONNX function of some nodes of a graph, so that one node can stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from poptransformer.graph import DOMAIN

Key = tuple[Any, ...]


class Outliner:
    """Functions of one op of our domain, each an overload of it; equal bodies share one.

    Args:
        model: gets the functions.
        op_type: name of the op.
        inputs: names of the op's inputs.
        attributes: the op's attributes, none of which the bodies read: theirs are those of the nodes they replace.
    """

    def __init__(
        self, model: ir.Model, op_type: str, inputs: Sequence[str], attributes: Mapping[str, ir.AttributeType]
    ) -> None:
        self.model = model
        self.op_type = op_type
        self.inputs = inputs
        self.attributes = attributes
        self._overloads: dict[Key, str] = {}

    def overload(
        self, name: str, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> str:
        """Returns the overload whose body is `nodes`.

        Args:
            name: what to call it; numbered where a different body has that name.
            nodes: in the graph's order; they read nothing but `inputs` and each other.
            inputs: the values that the nodes read, one for each input of the op as far as there are any.
            outputs: values of the nodes that are read elsewhere.
        """
        key = _structure(nodes, inputs, outputs)
        if key not in self._overloads:
            taken = set(self._overloads.values())
            numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
            self._overloads[key] = name if name not in taken else next(n for n in numbered if n not in taken)
            function = self._function(self._overloads[key], nodes, inputs, outputs)
            self.model.functions[function.identifier()] = function
        return self._overloads[key]

    def _function(
        self, overload: str, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> ir.Function:
        formal = [ir.Value(name=name) for name in self.inputs[: len(inputs)]]
        inside: dict[ir.Value, ir.Value] = {}
        for actual, value in zip(inputs, formal, strict=True):
            if actual is not None:
                inside.setdefault(actual, value)
        bodies = []
        for number, node in enumerate(nodes):
            body = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else inside[value] for value in node.inputs],
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
                name=f"{node.op_type}_{number}",
            )
            for index, (old, new) in enumerate(zip(node.outputs, body.outputs, strict=True)):
                new.name = f"{body.name}_{index}"
                inside[old] = new
            bodies.append(body)
        graph = ir.Graph(
            formal,
            [inside[value] for value in outputs],
            nodes=bodies,
            name=f"{self.op_type}_{overload}",
            opset_imports=dict(self.model.graph.opset_imports),
        )
        attributes = [ir.Attr(name, kind, None) for name, kind in self.attributes.items()]
        return ir.Function(DOMAIN, self.op_type, overload, graph=graph, attributes=attributes)


def _structure(
    nodes: Sequence[ir.Node], inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
) -> tuple[Any, ...]:
    """Equal for nodes whose functions would be the same, names apart."""
    numbers: dict[ir.Value | None, int] = {None: -1}
    for number, value in enumerate(inputs):
        numbers.setdefault(value, number)
    key: list[Any] = [len(inputs)]
    for node in nodes:
        attributes = sorted((a.name, a.type.name, repr(a.value)) for a in node.attributes.values())
        reads = tuple(numbers[value] for value in node.inputs)
        key.append((node.domain, node.op_type, node.overload, tuple(attributes), reads, len(node.outputs)))
        for value in node.outputs:
            numbers[value] = len(numbers) + len(inputs)
    return (*key, tuple(numbers[value] for value in outputs))
