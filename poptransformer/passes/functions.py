# SPDX-License-Identifier: Apache-2.0
"""Adds the definitions of our own ops to a model, so that it runs without the native library."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.graph import DOMAIN, function_spec, onnx_function


def attach_functions(model: ir.Model) -> None:
    """Adds the ONNX function of every own op that `model` uses, in subgraphs too.

    A node of an op with several bodies gets the `overload` that its attributes and inputs ask for.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain != DOMAIN:
            continue
        variant = function_spec(node.op_type).variant(node.inputs, node.attributes)
        node.overload = variant.overload
        function = onnx_function(node.op_type, variant)
        model.functions[function.identifier()] = function
