# SPDX-License-Identifier: Apache-2.0
"""Attention over a key/value cache, with caches of 32, 16 or 8 bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function

INT = ir.AttributeType.INT
FLOAT = ir.AttributeType.FLOAT
_FLOAT32 = int(ir.DataType.FLOAT)
_FLOAT8 = int(ir.DataType.FLOAT8E4M3FN)

# How an attention op's caches are stored, its attribute `cache`: as a float type, or as E4M3FN's codes in uint8.
FLOAT_CACHE, FLOAT8_CACHE = CACHES = ("float", "e4m3fn")


def _int_attribute(op: Any, name: str) -> Any:
    return op.Constant(value_int=ir.RefAttr("value_int", name, INT))


def _float_attribute(op: Any, name: str) -> Any:
    return op.Constant(value_float=ir.RefAttr("value_float", name, FLOAT))


def encode_float8(op: Any, x: Any) -> Any:
    """Codes of E4M3FN, uint8: to nearest even, 448 for what is greater, NaN for NaN.

    ONNX casts to the format but not to its bits, so they are computed from the rounded magnitude: m * 2^(e - 3), where
    e >= -6 and m is 8 to 15, or 0 to 7 at the smallest e.
    """
    rounded = op.Cast(op.Cast(x, to=_FLOAT8), to=_FLOAT32)
    magnitude = op.Abs(rounded)
    powers = op.Constant(value_floats=[2.0**k for k in range(-5, 9)])
    reached = op.Cast(op.GreaterOrEqual(op.Unsqueeze(magnitude, [-1]), powers), to=_FLOAT32)
    steps = op.ReduceSum(reached, [-1], keepdims=0)  # e + 6
    mantissa = op.Mul(magnitude, op.Pow(2.0, op.Sub(9.0, steps)))
    code = op.Add(mantissa, op.Mul(steps, 8.0))
    code = op.Where(op.IsNaN(rounded), 127.0, code)
    return op.Cast(op.Add(code, op.Where(op.Less(x, 0.0), 128.0, 0.0)), to=int(ir.DataType.UINT8))


def decode_float8(op: Any, codes: Any) -> Any:
    """Values of E4M3FN's codes, looked up in a table."""
    table = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return op.Gather(op.Constant(value=ir.tensor(table)), op.Cast(codes, to=int(ir.DataType.INT32)))


@register_function(
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "past_lengths",
    constant={"cache": CACHES},
    num_heads=INT,
    num_kv_heads=INT,
    scale=FLOAT,
)
def CachedAttention(  # noqa: N802 - op type
    op: Any, query: Any, key: Any, value: Any, past_key: Any, past_value: Any, past_lengths: Any, *, cache: str
) -> Any:
    """Appends keys and values to the cache, then attends causally to what it holds.

    Token i of row b goes to slot `past_lengths[b] + i` and sees the slots up to that one.
    """
    return _attend(op, query, key, value, past_key, past_value, past_lengths, cache)


@register_function(
    "query",
    "key",
    "value",
    "cos",
    "sin",
    "past_key",
    "past_value",
    "past_lengths",
    constant={"cache": CACHES},
    num_heads=INT,
    num_kv_heads=INT,
    scale=FLOAT,
    rotary_dim=INT,
    interleaved=INT,
)
def RotaryCachedAttention(  # noqa: N802 - op type
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    cos: Any,
    sin: Any,
    past_key: Any,
    past_value: Any,
    past_lengths: Any,
    *,
    cache: str,
) -> Any:
    """`CachedAttention` of queries and keys that it rotates first; the cache holds rotated keys."""

    def rotated(x: Any, heads: str) -> Any:
        return op.RotaryEmbedding(
            x,
            cos,
            sin,
            num_heads=ir.RefAttr("num_heads", heads, INT),
            rotary_embedding_dim=ir.RefAttr("rotary_embedding_dim", "rotary_dim", INT),
            interleaved=ir.RefAttr("interleaved", "interleaved", INT),
        )

    query, key = rotated(query, "num_heads"), rotated(key, "num_kv_heads")
    return _attend(op, query, key, value, past_key, past_value, past_lengths, cache)


def _attend(
    op: Any, query: Any, key: Any, value: Any, past_key: Any, past_value: Any, past_lengths: Any, cache: str
) -> Any:
    """What both ops have in common."""

    def heads(x: Any, name: str) -> Any:
        count = op.Unsqueeze(_int_attribute(op, name), [0])
        return op.Transpose(op.Reshape(x, op.Concat([0, 0], count, [-1], axis=0)), perm=[0, 2, 1, 3])

    def stored(x: Any, past: Any) -> Any:
        return encode_float8(op, x) if cache == FLOAT8_CACHE else op.CastLike(x, past)

    def values(present: Any) -> Any:
        return decode_float8(op, present) if cache == FLOAT8_CACHE else op.Cast(present, to=_FLOAT32)

    present_key = op.TensorScatter(past_key, stored(heads(key, "num_kv_heads"), past_key), past_lengths, axis=2)
    present_value = op.TensorScatter(past_value, stored(heads(value, "num_kv_heads"), past_value), past_lengths, axis=2)
    length = op.Squeeze(op.Shape(query, start=1, end=2), [0])
    slots = op.Squeeze(op.Shape(past_key, start=2, end=3), [0])
    position = op.Add(op.Unsqueeze(past_lengths, [1]), op.Unsqueeze(op.Range(0, length, 1), [0]))
    visible = op.LessOrEqual(op.Range(0, slots, 1), op.Unsqueeze(position, [1, 3]))
    # Attention takes its scale as an attribute that must be known when the model is written; scaling the query is
    # the same product.
    scaled = op.Mul(heads(query, "num_heads"), _float_attribute(op, "scale"))
    attended = op.Attention(scaled, values(present_key), values(present_value), visible, scale=1.0)
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
        past_key: fp32 `[B, K, S, H]`; the pass `store_caches` may choose another type for both caches.
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
        cache=FLOAT_CACHE,
    )
    for result, like in ((output, query), (present_key, past_key), (present_value, past_value)):
        result.dtype = like.dtype
        result.shape = like.shape
    return output, present_key, present_value
