# SPDX-License-Identifier: Apache-2.0
"""What the fuse passes ask of nodes and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

# Metadata that says where a node runs: what runs in different places stays apart.
PLACEMENT = ("ipu", "pipeline_stage")


def is_op(node: ir.Node | None, op_type: str, domain: str = "") -> bool:
    """Whether `node` is one of that operator."""
    return node is not None and node.op_type == op_type and node.domain == domain


def placement(node: ir.Node) -> tuple[str | None, ...]:
    """Where the node runs."""
    return tuple(node.metadata_props.get(key) for key in PLACEMENT)


def only_user(value: ir.Value) -> ir.Node | None:
    """Returns the node that reads `value`, where nothing else sees it: no second use, and it is no graph output.

    The node must lie in the value's own graph and run in the place where the value is made.
    """
    uses, producer = list(value.uses()), value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None:
        return None
    user = uses[0].node
    return user if user.graph is producer.graph and placement(user) == placement(producer) else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Returns the input of a node of two that is not `value`; None where both are."""
    others = [v for v in node.inputs if v is not value]
    return others[0] if len(node.inputs) == 2 and len(others) == 1 else None


def is_weight(value: ir.Value | None) -> bool:
    """Whether the value is an initializer."""
    return value is not None and value.is_initializer()


def is_vector(value: ir.Value | None, size: object) -> bool:
    """Whether the value is an fp32 initializer of `size` numbers."""
    return value is not None and is_weight(value) and value.dtype == ir.DataType.FLOAT and value.shape == (size,)


def same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether both have the same element type and shape for certain, whatever the symbolic dimensions stand for."""
    if one.dtype is None or one.dtype != other.dtype or one.shape is None or other.shape is None:
        return False
    known = all(isinstance(dim, int) or dim.value is not None for dim in one.shape)
    return known and list(one.shape) == list(other.shape)


def attributes_are(node: ir.Node, allowed: Mapping[str, object]) -> bool:
    """Whether each attribute of the node is in `allowed` and has the value there; None allows any value."""
    return all(
        name in allowed and (allowed[name] is None or attribute.value == allowed[name])
        for name, attribute in node.attributes.items()
    )


def common_metadata(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """Returns the metadata that all of the nodes have."""
    common = [set(node.metadata_props.items()) for node in nodes]
    return dict(sorted(set.intersection(*common)))


def common_scope(names: Iterable[str]) -> str:
    """Returns the scope that all nodes of these names lie in, with a slash at its end; empty for the whole graph."""
    scopes = [name.split("/")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*scopes, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}/" for part in shared)
