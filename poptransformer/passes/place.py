# SPDX-License-Identifier: Apache-2.0
"""Places what lies between the last block and the head, so that it is fused with what reads it."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.passes.match import PLACEMENT, placement


def place_after_blocks(model: ir.Model) -> None:
    """Gives nodes without a place, behind ones that have one, the place of their readers where these agree.

    A final norm goes to the stage of the head, and what is sent there are the chosen tokens alone.
    """
    nodes = list(model.graph)
    behind: set[ir.Node] = set()
    for node in nodes:
        producers = {value.producer() for value in node.inputs if value is not None}
        if any(p is not None and (p in behind or _is_placed(p)) for p in producers):
            behind.add(node)
    for node in reversed(nodes):
        if _is_placed(node) or node not in behind or any(value.is_graph_output() for value in node.outputs):
            continue
        places = {placement(use.node) for value in node.outputs for use in value.uses()}
        if len(places) == 1 and None not in (place := places.pop()):
            node.metadata_props.update({key: str(part) for key, part in zip(PLACEMENT, place, strict=True)})


def _is_placed(node: ir.Node) -> bool:
    return None not in placement(node)
