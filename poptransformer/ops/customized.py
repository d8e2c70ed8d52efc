# SPDX-License-Identifier: Apache-2.0
"""Our own ops: for each, the function that adds the node and the body that defines it in standard ONNX.

The bodies are the specification: the native kernels of `custom_ops/` are tested against them, and onnxruntime runs
them where the library is not loaded.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function

INT = ir.AttributeType.INT
FLOAT = ir.AttributeType.FLOAT
_FLOAT32 = int(ir.DataType.FLOAT)
_INT64 = int(ir.DataType.INT64)


def _int_attribute(op: Any, name: str) -> Any:
    return op.Constant(value_int=ir.RefAttr("value_int", name, INT))


def _float_attribute(op: Any, name: str) -> Any:
    return op.Constant(value_float=ir.RefAttr("value_float", name, FLOAT))


@register_function("x", "weight")
def Linear(op: Any, x: Any, weight: Any) -> Any:  # noqa: N802 - op type
    """Product with a weight in the layout that checkpoints hold, `[N, K]`, of any 16 or 32 bit float type."""
    return op.MatMul(x, op.Transpose(op.Cast(weight, to=_FLOAT32), perm=[1, 0]))


def linear(graph: Graph, x: ir.Value, weight: ir.Value) -> ir.Value:
    """Returns `x @ weight.T` in fp32.

    Args:
        graph: where the node goes.
        x: fp32 `[..., K]`.
        weight: fp32, fp16 or bf16 `[N, K]`.
    """
    y = graph.op("Linear", x, weight, domain=DOMAIN)
    y.dtype = x.dtype
    if x.shape is not None and weight.shape is not None:
        y.shape = ir.Shape([*x.shape[:-1], weight.shape[0]])
    return y


@register_function(
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "past_lengths",
    num_heads=INT,
    num_kv_heads=INT,
    scale=FLOAT,
)
def CachedAttention(  # noqa: N802 - op type
    op: Any, query: Any, key: Any, value: Any, past_key: Any, past_value: Any, past_lengths: Any
) -> Any:
    """Appends keys and values to the cache, then attends causally to what it holds.

    Token i of row b goes to slot `past_lengths[b] + i` and sees the slots up to that one.
    """

    def heads(x: Any, name: str) -> Any:
        count = op.Unsqueeze(_int_attribute(op, name), [0])
        return op.Transpose(op.Reshape(x, op.Concat([0, 0], count, [-1], axis=0)), perm=[0, 2, 1, 3])

    present_key = op.TensorScatter(past_key, heads(key, "num_kv_heads"), past_lengths, axis=2)
    present_value = op.TensorScatter(past_value, heads(value, "num_kv_heads"), past_lengths, axis=2)
    length = op.Squeeze(op.Shape(query, start=1, end=2), [0])
    slots = op.Squeeze(op.Shape(past_key, start=2, end=3), [0])
    position = op.Add(op.Unsqueeze(past_lengths, [1]), op.Unsqueeze(op.Range(0, length, 1), [0]))
    visible = op.LessOrEqual(op.Range(0, slots, 1), op.Unsqueeze(position, [1, 3]))
    # Attention takes its scale as an attribute that must be known when the model is written; scaling the query is
    # the same product.
    scaled = op.Mul(heads(query, "num_heads"), _float_attribute(op, "scale"))
    attended = op.Attention(scaled, present_key, present_value, visible, scale=1.0)
    return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), [0, 0, -1]), present_key, present_value


def cached_attention(
    graph: Graph,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    past_key: ir.Value,
    past_value: ir.Value,
    past_lengths: ir.Value,
    *,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Causal attention over a key/value cache, updated in place where the caller binds it so.

    Args:
        graph: where the node goes.
        query: fp32 `[B, L, N*H]`.
        key: fp32 `[B, L, K*H]`.
        value: fp32 `[B, L, K*H]`.
        past_key: fp32 `[B, K, S, H]`.
        past_value: fp32 `[B, K, S, H]`.
        past_lengths: int64 `[B]`, slots of each row in use.
        num_heads: N, a multiple of `num_kv_heads`.
        num_kv_heads: K.
        scale: factor on the scores, usually `H ** -0.5`.

    Returns:
        Output `[B, L, N*H]`, present key and present value of the caches' shape.
    """
    output, present_key, present_value = graph.op(
        "CachedAttention",
        query,
        key,
        value,
        past_key,
        past_value,
        past_lengths,
        domain=DOMAIN,
        outputs=3,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        scale=float(scale),
    )
    for result, like in ((output, query), (present_key, past_key), (present_value, past_value)):
        result.dtype = like.dtype
        result.shape = like.shape
    return output, present_key, present_value
