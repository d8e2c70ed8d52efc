# SPDX-License-Identifier: Apache-2.0
"""Puts products with weights together with what surrounds them: one `FusedLinear` in place of several nodes.

A norm and the products that alone read it; products of the same rows (queries, keys, values); biases; an activation;
the product with a gate; the sum with a residual. Only where nothing else sees the values in between.
"""

from __future__ import annotations

import json

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.groups import Group, find_groups
from poptransformer.passes.match import common_metadata, common_scope, unique_name
from poptransformer.passes.outline import Outliner
from poptransformer.passes.products import MAX_PIECES, norm_of

FUSED_LINEAR = "FusedLinear"
_WEIGHT = ("weight", "scales", "offsets", "bias")
INPUTS = ("x", "norm_weight", "norm_bias", "residual", *(f"{n}{i}" for i in range(MAX_PIECES) for n in _WEIGHT))
ATTRIBUTES = {
    "norm": ir.AttributeType.STRING,
    "epsilon": ir.AttributeType.FLOAT,
    "activation": ir.AttributeType.STRING,
    "gated": ir.AttributeType.INT,
    "formats": ir.AttributeType.STRING,
    "columns": ir.AttributeType.INTS,
    "splits": ir.AttributeType.INTS,
}
# On a fused node: which of its inputs the layers that it stands for read, {scope: [numbers]}.
SCOPES = "poptransformer.scopes"


def fuse_linear(model: ir.Model) -> None:
    """Rewrites the main graph; run it when all weights have their final form."""
    graph = model.graph
    order = {node: number for number, node in enumerate(graph)}
    outliner = Outliner(model, FUSED_LINEAR, INPUTS, ATTRIBUTES)
    names = {str(node.name) for node in graph}
    for group in find_groups(graph):
        _replace(graph, group, order, outliner, names)


def _replace(graph: ir.Graph, group: Group, order: dict[ir.Node, int], outliner: Outliner, names: set[str]) -> None:
    nodes = sorted(group.nodes, key=order.__getitem__)
    inputs = _inputs(group)
    while inputs[-1] is None:
        inputs.pop()
    outputs = list(group.outputs)
    fused = ir.Node(
        DOMAIN,
        FUSED_LINEAR,
        inputs,
        _attributes(group),
        overload=outliner.overload(_describe(group), nodes, inputs, outputs),
        num_outputs=len(outputs),
        version=1,
        name=unique_name([product.nodes[0] for product in group.products], FUSED_LINEAR, names),
        metadata_props=common_metadata(nodes) | {SCOPES: json.dumps(_scopes(group))},
    )
    # Several outputs hang on x and weights alone; a single one may wait for the residual.
    place = group.tail[-1] if group.tail else min((p.nodes[0] for p in group.products), key=order.__getitem__)
    graph.insert_before(place, fused)
    for old, new in zip(outputs, fused.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)


def _inputs(group: Group) -> list[ir.Value | None]:
    source = [group.products[0].x] if group.norm is None else group.norm.inputs
    head = [*source, None, None][:3]
    return [*head, group.residual, *(value for product in group.products for value in product.weight)]


def _attributes(group: Group) -> list[ir.Attr]:
    norm = norm_of(group.norm)
    epsilon = group.norm.attributes.get("epsilon") if group.norm is not None else None
    default = 0.0 if group.norm is None else 1e-5  # ONNX's
    values = {
        "norm": norm or "none",
        "epsilon": default if epsilon is None else epsilon.as_float(),
        "activation": group.activation,
        "gated": group.gated,
        "formats": " ".join(product.format for product in group.products),
        "columns": [size for product in group.products for size in product.columns],
        "splits": [len(product.columns) for product in group.products],
    }
    return [ir.Attr(name, kind, values[name]) for name, kind in ATTRIBUTES.items()]


def _describe(group: Group) -> str:
    """What the overload is called: `rms_int4_int4_silu_gated`."""
    parts = [norm_of(group.norm)]
    for product in group.products:
        parts += [product.format, f"split{len(product.columns)}" if len(product.columns) > 1 else None]
    parts += [group.activation if group.activation != "none" else None, "gated" if group.gated else None]
    parts.append("residual" if group.has_residual else None)
    return "_".join(part for part in parts if part)


def _scopes(group: Group) -> dict[str, list[int]]:
    """The layers that the node stands for, and the weights that each of them reads, by number of the input."""
    scopes: dict[str, list[int]] = {_scope(node): [] for node in group.nodes}
    if group.norm is not None:
        scopes[_scope(group.norm)] += [1, 2]
    for number, product in enumerate(group.products):
        first = INPUTS.index(f"weight{number}")
        scopes[_scope(product.nodes[0])] += range(first, first + len(_WEIGHT))
    return scopes


def _scope(node: ir.Node) -> str:
    return common_scope([str(node.name)]).removesuffix("/")
