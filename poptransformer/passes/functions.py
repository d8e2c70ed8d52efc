# SPDX-License-Identifier: Apache-2.0
"""Adds the definitions of our own ops to a model, so that it runs without the native library."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.graph import DOMAIN, onnx_function


def attach_functions(model: ir.Model) -> None:
    """Adds the ONNX function of every own op that `model` uses, in subgraphs too."""
    used = {node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == DOMAIN}
    for name in sorted(used):
        function = onnx_function(name)
        model.functions[function.identifier()] = function
