# SPDX-License-Identifier: Apache-2.0
"""Attention over a key/value cache, with and without rotary embedding.

A cache is float32, float16, or uint8 with codes of E4M3FN: 4 bits exponent, 3 bits mantissa, no scale, saturating at
448. Keys and values are rounded to nearest even when they are written; attention reads what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function

INT = ir.AttributeType.INT
FLOAT = ir.AttributeType.FLOAT
STRING = ir.AttributeType.STRING
_FLOAT32 = int(ir.DataType.FLOAT)
_INT32 = int(ir.DataType.INT32)
_INT64 = int(ir.DataType.INT64)
_UINT8 = int(ir.DataType.UINT8)
_E4M3FN = ir.DataType.FLOAT8E4M3FN

E4M3FN = "e4m3fn"
CACHE_FORMATS = ("", E4M3FN)  # what a cache holds: its own element type's numbers, or codes in uint8
CACHED_ATTENTIONS = ("CachedAttention", "RotaryCachedAttention")
_CACHE = ("past_key", "past_value", "past_lengths", "prefix_lengths?")
_COMMON = {"num_heads": INT, "num_kv_heads": INT, "scale": FLOAT, "cache_format": STRING}


def _int_attribute(op: Any, name: str) -> Any:
    return op.Constant(value_int=ir.RefAttr("value_int", name, INT))


def _constant(op: Any, array: Any) -> Any:
    return op.Constant(value=ir.tensor(np.asarray(array, np.float32)))


def _codes(op: Any, x: Any) -> Any:
    """The nearest codes of E4M3FN, as uint8; ties to even, NaN stays."""
    rounded = op.Cast(op.Cast(x, to=int(_E4M3FN)), to=_FLOAT32)
    size = op.Abs(rounded)
    # The codes of numbers in [2^e, 2^(e+1)) are 2^(e-3) apart. The lowest such run that counts begins at 2^-6: below
    # it codes are as far apart as in it.
    reached = op.GreaterOrEqual(op.Unsqueeze(size, [-1]), _constant(op, 2.0 ** np.arange(-5, 9)))
    run = op.ReduceSum(op.Cast(reached, to=_INT64), [-1], keepdims=0)
    code = op.Add(
        op.Gather(_constant(op, 8.0 * np.arange(15)), run),
        op.Mul(size, op.Gather(_constant(op, 2.0 ** (9 - np.arange(15))), run)),
    )
    code = op.Where(op.Less(op.Div(1.0, rounded), 0.0), op.Add(code, 128.0), code)  # 1 / -0 is -infinity
    return op.Cast(op.Where(op.IsNaN(rounded), 127.0, code), to=_UINT8)


def _stored(op: Any, x: Any, past: Any, cache_format: str) -> Any:
    return _codes(op, x) if cache_format == E4M3FN else op.CastLike(x, past)


def _read(op: Any, cache: Any, cache_format: str) -> Any:
    if cache_format != E4M3FN:
        return op.Cast(cache, to=_FLOAT32)
    values = np.arange(256, dtype=np.uint8).view(_E4M3FN.numpy()).astype(np.float32)
    return op.Gather(_constant(op, values), op.Cast(cache, to=_INT32))


@register_function("query", "key", "value", *_CACHE, constant={"cache_format": CACHE_FORMATS}, **_COMMON)
def CachedAttention(  # noqa: N802 - op type
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    past_lengths: Any,
    prefix_lengths: Any,
    cache_format: str = "",
) -> Any:
    """Appends keys and values to the cache, then attends to what it holds.

    Token i of row b goes to slot `past_lengths[b] + i` and sees the slots up to that one, and all slots before
    `prefix_lengths[b]`.
    """

    def heads(x: Any, name: str) -> Any:
        count = op.Unsqueeze(_int_attribute(op, name), [0])
        return op.Transpose(op.Reshape(x, op.Concat([0, 0], count, [-1], axis=0)), perm=[0, 2, 1, 3])

    def appended(past: Any, x: Any) -> Any:
        stored = _stored(op, heads(x, "num_kv_heads"), past, cache_format)
        return op.TensorScatter(past, stored, past_lengths, axis=2)

    present_key, present_value = appended(past_key, key), appended(past_value, value)
    length = op.Squeeze(op.Shape(query, start=1, end=2), [0])
    slots = op.Squeeze(op.Shape(past_key, start=2, end=3), [0])
    position = op.Add(op.Unsqueeze(past_lengths, [1]), op.Unsqueeze(op.Range(0, length, 1), [0]))
    if prefix_lengths is not None:
        position = op.Max(position, op.Sub(op.Unsqueeze(prefix_lengths, [1]), 1))
    visible = op.LessOrEqual(op.Range(0, slots, 1), op.Unsqueeze(position, [1, 3]))
    # Attention takes its scale as an attribute that must be known when the model is written; scaling the query is
    # the same product.
    scale = op.Constant(value_float=ir.RefAttr("value_float", "scale", FLOAT))
    scaled = op.Mul(heads(query, "num_heads"), scale)
    keys, values = (_read(op, cache, cache_format) for cache in (present_key, present_value))
    attended = op.Attention(scaled, keys, values, visible, scale=1.0)
    return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), [0, 0, -1]), present_key, present_value


@register_function(
    "query",
    "key",
    "value",
    "cos",
    "sin",
    *_CACHE,
    constant={"cache_format": CACHE_FORMATS},
    rotary_dim=INT,
    interleaved=INT,
    **_COMMON,
)
def RotaryCachedAttention(  # noqa: N802 - op type
    op: Any, query: Any, key: Any, value: Any, cos: Any, sin: Any, *cache: Any, cache_format: str = ""
) -> Any:
    """`CachedAttention` of queries and keys that are rotated first, as by ONNX's `RotaryEmbedding`."""

    def rotated(x: Any, count: str) -> Any:
        return op.RotaryEmbedding(
            x,
            cos,
            sin,
            num_heads=ir.RefAttr("num_heads", count, INT),
            rotary_embedding_dim=ir.RefAttr("rotary_embedding_dim", "rotary_dim", INT),
            interleaved=ir.RefAttr("interleaved", "interleaved", INT),
        )

    return CachedAttention(
        op, rotated(query, "num_heads"), rotated(key, "num_kv_heads"), value, *cache, cache_format=cache_format
    )


def _outputs(
    graph: Graph,
    op_type: str,
    operands: Sequence[ir.Value],
    cache: Sequence[ir.Value],
    prefix_lengths: ir.Value | None,
    **attributes: Any,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    # Left out, not None: onnxruntime 1.32 crashes on a node whose last input is there, but empty.
    inputs = [*operands, *cache] if prefix_lengths is None else [*operands, *cache, prefix_lengths]
    output, present_key, present_value = graph.op(op_type, *inputs, domain=DOMAIN, outputs=3, **attributes)
    likes = (operands[0], *cache[:2])
    for result, like in zip((output, present_key, present_value), likes, strict=True):
        result.dtype = like.dtype
        result.shape = like.shape
    return output, present_key, present_value


def cached_attention(
    graph: Graph,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    past_key: ir.Value,
    past_value: ir.Value,
    past_lengths: ir.Value,
    prefix_lengths: ir.Value | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Attention over a key/value cache, updated in place where the caller binds it so.

    Args:
        graph: where the node goes.
        query: fp32 `[B, L, N*H]`.
        key: fp32 `[B, L, K*H]`.
        value: fp32 `[B, L, K*H]`.
        past_key: `[B, K, S, H]`, fp32, fp16, or codes in uint8.
        past_value: the same.
        past_lengths: int64 `[B]`, slots of each row in use.
        prefix_lengths: int64 `[B]`, tokens at the beginning of each row that every token sees, whichever comes first;
            at most those of the row after this step. None is causal attention.
        num_heads: N, a multiple of `num_kv_heads`.
        num_kv_heads: K.
        scale: factor on the scores, usually `H ** -0.5`.

    Returns:
        Output `[B, L, N*H]`, present key and present value of the caches' shape.
    """
    return _outputs(
        graph,
        "CachedAttention",
        (query, key, value),
        (past_key, past_value, past_lengths),
        prefix_lengths,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        scale=float(scale),
        **_format_of(past_key),
    )


def rotary_cached_attention(
    graph: Graph,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    past_key: ir.Value,
    past_value: ir.Value,
    past_lengths: ir.Value,
    prefix_lengths: ir.Value | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    rotary_dim: int,
    interleaved: bool = False,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The same for queries and keys that are to be rotated; the cache holds rotated keys.

    Args:
        graph: where the node goes.
        query: fp32 `[B, L, N*H]`.
        key: fp32 `[B, L, K*H]`.
        value: fp32 `[B, L, K*H]`.
        cos: fp32 `[B, L, rotary_dim/2]`.
        sin: the same.
        past_key: `[B, K, S, H]`, fp32, fp16, or codes in uint8.
        past_value: the same.
        past_lengths: int64 `[B]`, slots of each row in use.
        prefix_lengths: as for `cached_attention`.
        num_heads: N, a multiple of `num_kv_heads`.
        num_kv_heads: K.
        scale: factor on the scores, usually `H ** -0.5`.
        rotary_dim: columns of a head to rotate; the others pass.
        interleaved: pairs are neighbours instead of halves.

    Returns:
        Output `[B, L, N*H]`, present key and present value of the caches' shape.
    """
    return _outputs(
        graph,
        "RotaryCachedAttention",
        (query, key, value, cos, sin),
        (past_key, past_value, past_lengths),
        prefix_lengths,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        scale=float(scale),
        rotary_dim=rotary_dim,
        interleaved=int(interleaved),
        **_format_of(past_key),
    )


def _format_of(past: ir.Value) -> dict[str, str]:
    return {"cache_format": E4M3FN} if past.dtype == ir.DataType.UINT8 else {}
