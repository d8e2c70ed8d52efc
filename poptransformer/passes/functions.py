# SPDX-License-Identifier: Apache-2.0
"""Adds the definitions of our own ops to a model, so that it runs without the native library."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from poptransformer.graph import DOMAIN, function_spec, onnx_function


def attach_functions(model: ir.Model) -> None:
    """Adds the ONNX function of every own op that `model` uses, in subgraphs and in the functions it has already.

    A node of an op with several bodies gets the `overload` that its attributes and inputs ask for. A node whose
    function is there keeps it.
    """
    for function in list(model.functions.values()):
        for node in _own_nodes(function):
            _attach(model, node, is_nested=True)
    for node in _own_nodes(model.graph):
        _attach(model, node, is_nested=False)


def _attach(model: ir.Model, node: ir.Node, is_nested: bool) -> None:
    if node.op_identifier() in model.functions:
        return
    variant = function_spec(node.op_type).variant(node.inputs, node.attributes)
    function = onnx_function(node.op_type, variant)
    if is_nested and variant.overload:
        # onnxruntime 1.32 loses a node's overload inside of a function ("is not a registered function/op"). No kernel
        # looks for the op's name there, so each body goes by a name of its own.
        name = f"{node.op_type}_{variant.overload}"
        function = ir.Function(DOMAIN, name, graph=function.graph.clone(), attributes=list(function.attributes.values()))
        node.op_type = name
    else:
        node.overload = variant.overload
    model.functions[function.identifier()] = function


def _own_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    return (node for node in ir.traversal.RecursiveGraphIterator(graph) if node.domain == DOMAIN)
