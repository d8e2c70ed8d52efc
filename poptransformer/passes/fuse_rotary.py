# SPDX-License-Identifier: Apache-2.0
"""Puts the rotation of queries and keys into the attention that alone reads them: `RotaryCachedAttention`."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.match import attributes_are, common_metadata, is_op, only_user, unique_name

ATTENTION = "CachedAttention"
ROTARY_ATTENTION = "RotaryCachedAttention"
_ROTARY = ("num_heads", "rotary_embedding_dim", "interleaved")


def fuse_rotary(model: ir.Model) -> None:
    """Rewrites the main graph."""
    graph = model.graph
    names = {str(node.name) for node in graph}
    for node in list(graph):
        if is_op(node, ATTENTION, DOMAIN):
            rotations = _rotations(node)
            if rotations is not None:
                _replace(graph, node, *rotations, names)


def _rotations(attention: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The nodes that rotate queries and keys, where both do it alike."""
    rotations = []
    for value, heads in zip(attention.inputs[:2], ("num_heads", "num_kv_heads"), strict=True):
        node = value.producer() if only_user(value) is attention and value is not None else None
        if node is None or not is_op(node, "RotaryEmbedding") or _rotary_dim(node) is None:
            return None
        if not attributes_are(node, dict.fromkeys(_ROTARY)) or len([v for v in node.inputs if v is not None]) != 3:
            return None  # with positions, cosines and sines are tables
        if node.attributes.get_int("num_heads", 0) != attention.attributes[heads].as_int():
            return None
        rotations.append(node)
    query, key = rotations
    same = list(query.inputs[1:3]) == list(key.inputs[1:3]) and _kind(query) == _kind(key)
    return (query, key) if same else None


def _rotary_dim(node: ir.Node) -> int | None:
    """R of cosines `[B, L, R/2]`."""
    cos = node.inputs[1]
    half = cos.shape[2] if cos is not None and cos.shape is not None and len(cos.shape) == 3 else None
    if not isinstance(half, int) or node.attributes.get_int("rotary_embedding_dim", 0) not in (0, 2 * half):
        return None
    return 2 * half


def _kind(node: ir.Node) -> tuple[int | None, int]:
    return _rotary_dim(node), node.attributes.get_int("interleaved", 0)


def _replace(graph: ir.Graph, attention: ir.Node, query: ir.Node, key: ir.Node, names: set[str]) -> None:
    rotary_dim, interleaved = _kind(query)
    attributes = [
        *attention.attributes.values(),
        ir.Attr("rotary_dim", ir.AttributeType.INT, rotary_dim),
        ir.Attr("interleaved", ir.AttributeType.INT, interleaved),
    ]
    _, _, value, *cache = attention.inputs
    fused = ir.Node(
        DOMAIN,
        ROTARY_ATTENTION,
        [query.inputs[0], key.inputs[0], value, *query.inputs[1:3], *cache],
        attributes,
        num_outputs=len(attention.outputs),
        version=1,
        name=unique_name([attention], ROTARY_ATTENTION, names),
        metadata_props=common_metadata([attention, query, key]),
    )
    graph.insert_before(attention, fused)
    for old, new in zip(attention.outputs, fused.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([query, key, attention], safe=True)
