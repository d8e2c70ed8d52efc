# SPDX-License-Identifier: Apache-2.0
"""Puts products with weights together with what surrounds them: one `FusedLinear` in place of several nodes.

A norm and the products that alone read it; products of the same rows (queries, keys, values); biases; an activation;
the product with a gate; the sum with a residual. Only where nothing else sees the values in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.match import common_metadata, common_scope, is_op, only_user, other_input, placement
from poptransformer.passes.outline import Outliner
from poptransformer.passes.products import Group, Product, activation_of, find_product, norm_of, residual_sum

FUSED_LINEAR = "FusedLinear"
MAX_PRODUCTS = 3
_WEIGHT = ("weight", "scales", "offsets", "bias")
INPUTS = ("x", "norm_weight", "norm_bias", "residual", *(f"{n}{i}" for i in range(MAX_PRODUCTS) for n in _WEIGHT))
ATTRIBUTES = {
    "norm": ir.AttributeType.STRING,
    "epsilon": ir.AttributeType.FLOAT,
    "activation": ir.AttributeType.STRING,
    "gated": ir.AttributeType.INT,
    "formats": ir.AttributeType.STRING,
    "columns": ir.AttributeType.INTS,
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


def find_groups(graph: ir.Graph) -> list[Group]:
    """Returns what can be fused, no node in two groups."""
    products = {p.value: p for node in graph if (p := find_product(node)) is not None}
    groups = [*_gated(graph, products), *_singles(products), *_side_by_side(products)]
    for group in groups:
        _take_norm(group)
    return [group for group in groups if group.is_more_than_a_product()]


def _gated(graph: ir.Graph, products: dict[ir.Value, Product]) -> Iterator[Group]:
    """`activation(first) * second`; takes the products out of `products`."""
    for node in graph:
        if not is_op(node, "Mul"):
            continue
        for activated in node.inputs:
            function = activated.producer() if activated is not None and only_user(activated) is node else None
            activation = activation_of(function)
            if function is None or activation is None:
                continue
            first, second = products.get(function.inputs[0]), products.get(other_input(node, activated))  # type: ignore[arg-type]
            if first is None or second is None or first is second or not _fit(first, second):
                continue
            if only_user(first.value) is function and only_user(second.value) is node and _same_columns(first, second):
                group = Group([first, second], [function, node], activation, gated=True)
                _take_residual(group)
                del products[first.value], products[second.value]
                yield group
                break


def _singles(products: dict[ir.Value, Product]) -> Iterator[Group]:
    """Products with an activation or a residual; takes them out of `products`."""
    for product in list(products.values()):
        group = Group([product])
        function = only_user(product.value)
        activation = activation_of(function)
        if function is not None and activation is not None:
            group.tail, group.activation = [function], activation
        _take_residual(group)
        if group.tail:
            del products[product.value]
            yield group


def _side_by_side(products: dict[ir.Value, Product]) -> Iterator[Group]:
    """Products of the same rows, in the graph's order."""
    by_rows: dict[tuple[ir.Value, tuple[str | None, ...]], list[Product]] = {}
    for product in products.values():
        by_rows.setdefault((product.x, placement(product.nodes[0])), []).append(product)
    for same in by_rows.values():
        for start in range(0, len(same), MAX_PRODUCTS):
            yield Group(same[start : start + MAX_PRODUCTS])


def _fit(first: Product, second: Product) -> bool:
    return first.x is second.x and placement(first.nodes[0]) == placement(second.nodes[0])


def _same_columns(first: Product, second: Product) -> bool:
    return first.columns == second.columns


def _take_residual(group: Group) -> None:
    node = residual_sum(group.outputs[0])
    if node is not None:
        group.tail.append(node)
        group.has_residual = True


def _take_norm(group: Group) -> None:
    """Adds the norm before the products where they are its only readers."""
    x = group.products[0].x
    norm = x.producer()
    if norm is None or norm_of(norm) is None or x.is_graph_output():
        return
    readers = {(product.nodes[0], 0) for product in group.products}
    apart = [node for node, _ in readers if placement(node) != placement(norm)]
    if {(use.node, use.idx) for use in x.uses()} == readers and not apart:
        group.norm = norm


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
        name=_unique(common_scope(str(p.nodes[0].name) for p in group.products) + FUSED_LINEAR, names),
        metadata_props=common_metadata(nodes) | {SCOPES: json.dumps(_scopes(group))},
    )
    # Several outputs hang on x and weights alone; a single one may wait for the residual.
    place = group.tail[-1] if group.tail else min((p.nodes[0] for p in group.products), key=order.__getitem__)
    graph.insert_before(place, fused)
    for old, new in zip(outputs, fused.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    order[fused] = order[place]
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
        "gated": int(group.gated),
        "formats": " ".join(product.format for product in group.products),
        "columns": [product.columns for product in group.products],
    }
    return [ir.Attr(name, kind, values[name]) for name, kind in ATTRIBUTES.items()]


def _describe(group: Group) -> str:
    """What the overload is called: `rms_int4_int4_silu_gated`."""
    parts = [norm_of(group.norm), *(product.format for product in group.products)]
    parts += [group.activation if group.activation != "none" else None, "gated" if group.gated else None]
    parts.append("residual" if group.has_residual else None)
    return "_".join(part for part in parts if part)


def _scopes(group: Group) -> dict[str, list[int]]:
    """The layers that the node stands for, and the weights that each of them reads, by number of the input."""
    scopes: dict[str, list[int]] = {}
    for node in group.nodes:
        scopes.setdefault(common_scope([str(node.name)]).removesuffix("/"), [])
    if group.norm is not None:
        scopes[common_scope([str(group.norm.name)]).removesuffix("/")] += [1, 2]
    for number, product in enumerate(group.products):
        first = INPUTS.index(f"weight{number}")
        scopes[common_scope([str(product.nodes[0].name)]).removesuffix("/")] += range(first, first + len(_WEIGHT))
    return scopes


def _unique(name: str, names: set[str]) -> str:
    candidate, number = name, 0
    while candidate in names:
        number += 1
        candidate = f"{name}_{number}"
    names.add(candidate)
    return candidate
