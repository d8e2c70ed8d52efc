# SPDX-License-Identifier: Apache-2.0
"""Gives functions that other functions call names of their own.

onnxruntime 1.32 forgets the overload of a node when it inlines the function that holds it, and then finds no such
function. So inside of a body there are no overloads: the function is there again, its overload a part of its name.
"""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.graph import DOMAIN


def name_nested_functions(model: ir.Model) -> None:
    """Rewrites the bodies of the model's functions; run it after `attach_functions`."""
    for function in list(model.functions.values()):
        for node in function:
            if node.domain == DOMAIN and node.overload:
                original = model.functions[node.op_identifier()]
                renamed = ir.Function(
                    DOMAIN,
                    f"{node.op_type}_{node.overload}",
                    graph=original.graph,
                    attributes=list(original.attributes.values()),
                )
                model.functions[renamed.identifier()] = renamed
                node.op_type, node.overload = renamed.name, ""
    _remove_unused(model)


def _remove_unused(model: ir.Model) -> None:
    """Removes functions that were called in the renamed places only."""
    used: set[tuple[str, str, str]] = set()
    graphs: list[ir.Graph | ir.Function] = [model.graph]
    while graphs:
        for node in ir.traversal.RecursiveGraphIterator(graphs.pop()):
            identifier = node.op_identifier()
            if identifier in model.functions and identifier not in used:
                used.add(identifier)
                graphs.append(model.functions[identifier])
    for identifier in set(model.functions) - used:
        del model.functions[identifier]
