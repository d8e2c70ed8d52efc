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
    for node in _own_nodes(model):
        if node.op_identifier() not in model.functions:
            variant = function_spec(node.op_type).variant(node.inputs, node.attributes)
            node.overload = variant.overload
            function = onnx_function(node.op_type, variant)
            model.functions[function.identifier()] = function


def _own_nodes(model: ir.Model) -> Iterator[ir.Node]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        yield from (node for node in ir.traversal.RecursiveGraphIterator(graph) if node.domain == DOMAIN)
