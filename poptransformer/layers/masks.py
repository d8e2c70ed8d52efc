# SPDX-License-Identifier: Apache-2.0
"""Masks and biases in graphs, with the meaning that they have in `poptransformer.nn`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.errors import GraphError
from poptransformer.graph import Graph

LOWEST = float(np.finfo(np.float32).min)


def additive_mask(graph: Graph, mask: ir.Value, new_dims: Sequence[int]) -> ir.Value:
    """Turns a mask into fp32 numbers to add to scores of four dimensions.

    Args:
        graph: where the nodes go.
        mask: booleans or integers, nonzero means masked; or floats to add. `[L, S]` or `[B, S]`, `[B, L, S]`,
            `[B, N, L, S]`.
        new_dims: where a mask of two dimensions gets two more.

    Raises:
        GraphError: another number of dimensions.
    """
    rank = len(mask.shape) if mask.shape is not None else 0
    if rank not in (2, 3, 4):
        raise GraphError(f"The mask {mask.name} must have 2, 3 or 4 dimensions, found shape {mask.shape}.")
    if mask.dtype is not None and not mask.dtype.is_floating_point():
        mask = ops.where(graph, ops.cast(graph, mask, np.bool_), LOWEST, 0.0)
    elif mask.dtype != ir.DataType.FLOAT:
        mask = ops.cast(graph, mask, np.float32)
    if rank == 4:
        return mask
    return ops.unsqueeze(graph, mask, list(new_dims) if rank == 2 else [1])


def for_past(graph: Graph, mask: ir.Value, past_key: ir.Value, key: ir.Value) -> ir.Value:
    """Puts zeros for the past keys before a mask that knows the new keys alone; one that knows all stays as it is.

    Args:
        graph: where the nodes go.
        mask: `[..., S or P + S]`, fp32, four dimensions.
        past_key: `[B, N, P, H]`.
        key: past and new keys, `[B, N, P + S, H]`.
    """
    total, columns = ops.shape(graph, key, 2, 3), ops.shape(graph, mask, 3, 4)
    new = ops.sub(graph, total, ops.shape(graph, past_key, 2, 3))
    missing = ops.where(graph, ops.equal(graph, columns, new), ops.sub(graph, total, columns), ops.constant(graph, [0]))
    zeros = ops.expand(graph, ops.constant(graph, 0.0), ops.concat(graph, [ops.shape(graph, mask, 0, 3), missing], 0))
    return ops.concat(graph, [zeros, mask], 3)


def combined(graph: Graph, masks: Sequence[ir.Value]) -> ir.Value | None:
    """Adds masks and biases; no row becomes minus infinity, whose softmax is not a number. None for no mask."""
    if not masks:
        return None
    total = masks[0]
    for mask in masks[1:]:
        total = ops.maximum(graph, ops.add(graph, total, mask), LOWEST)
    return ops.maximum(graph, total, LOWEST)


def causal_mask(graph: Graph, x: ir.Value, past_key: ir.Value | None = None) -> ir.Value:
    """Returns booleans `[L, P + L]`, true for keys that come after their query.

    Args:
        graph: where the nodes go.
        x: `[B, L, ...]`, ids or hidden states.
        past_key: `[B, N, P, H]`; None for no past.
    """
    length = ops.squeeze(graph, ops.shape(graph, x, 1, 2), [0])
    start = ops.constant(graph, 0)
    if past_key is not None:
        start = ops.squeeze(graph, ops.shape(graph, past_key, 2, 3), [0])
    total = ops.add(graph, start, length)
    queries = ops.unsqueeze(graph, ops.arange(graph, start, total), [1])
    keys = ops.unsqueeze(graph, ops.arange(graph, ops.constant(graph, 0), total), [0])
    return ops.less(graph, queries, keys)
