# SPDX-License-Identifier: Apache-2.0
"""Attention of the layers API over the caches of the engine, where rows of a batch have tokens of their own number."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers.embedding_positions import StepBias, consecutive, length_of
from poptransformer.layers.heads import joined_heads, split_heads
from poptransformer.layers.masks import LOWEST
from poptransformer.step import Step


def attend_in_step(
    graph: Graph,
    step: Step,
    layer_index: int,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    *,
    num_heads: int,
    head_dim: int,
    scale: float,
    bias: StepBias | None = None,
) -> ir.Value:
    """Appends to a layer's cache and attends to it causally.

    Args:
        graph: where the nodes go.
        step: the inputs of this step.
        layer_index: number of the layer; names its cache.
        query: `[B, L, N*H]`, as `key` and `value`.
        key: see above.
        value: see above.
        num_heads: N of one replica.
        head_dim: H.
        scale: factor on the scores.
        bias: added to them; the cache then keeps 32 bits, for the kernel knows no bias.

    Returns:
        `[B, L, N*H]`.
    """
    cache = step.kv_cache(layer_index, num_heads, head_dim)
    pasts = cache.key.past, cache.value.past
    if bias is None:
        attended, present_key, present_value = ops.cached_attention(
            *(graph, query, key, value, *pasts, step.past_lengths),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            scale=scale,
        )
    else:
        query, key, value = (split_heads(graph, part, num_heads, head_dim) for part in (query, key, value))
        present_key, present_value = (
            graph.op("TensorScatter", past, new, step.past_lengths, axis=2)
            for past, new in zip(pasts, (key, value), strict=True)
        )
        weights = _weights(graph, ops.mul(graph, query, scale), present_key, step, bias)
        attended = joined_heads(graph, ops.matmul(graph, weights, present_value), num_heads, head_dim)
    cache.key.update(present_key)
    cache.value.update(present_value)
    return attended


def _weights(graph: Graph, query: ir.Value, keys: ir.Value, step: Step, bias: StepBias) -> ir.Value:
    """Attention weights `[B, N, L, S]` over all slots; those behind a token count nothing."""
    slots = length_of(graph, keys, 2)
    scores = ops.matmul(graph, query, ops.transpose(graph, keys, [0, 1, 3, 2]))
    scores = ops.add(graph, scores, bias(graph, slots))
    behind = ops.less(graph, ops.unsqueeze(graph, step.position_ids, [1, 3]), consecutive(graph, 0, slots))
    return ops.softmax(graph, ops.where(graph, behind, LOWEST, scores))
