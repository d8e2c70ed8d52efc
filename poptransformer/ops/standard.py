# SPDX-License-Identifier: Apache-2.0
"""Standard ONNX operators as functions of a graph.

Every function takes the graph first and returns the output value. Arguments named after the ONNX specification
(https://onnx.ai/onnx/operators) mean what they mean there; operands may be Python numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer.graph import Graph

Value = ir.Value
Operand = Value | int | float | Sequence[int]


def _dtype(dtype: Any) -> ir.DataType:
    return dtype if isinstance(dtype, ir.DataType) else ir.DataType.from_numpy(np.dtype(dtype))


def identity(graph: Graph, x: Value) -> Value:
    """Returns a new value equal to `x`."""
    return graph.op("Identity", x)


def constant(graph: Graph, value: Any, dtype: Any = None) -> Value:
    """Returns a constant array; Python floats become float32, integers int64."""
    return graph.constant(value, dtype)


def matmul(graph: Graph, x: Value, y: Value) -> Value:
    """Matrix product of `[..., M, K]` and `[..., K, N]`, broadcast as in NumPy."""
    return graph.op("MatMul", x, y)


def add(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x + y`."""
    return graph.op("Add", x, y)


def sub(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x - y`."""
    return graph.op("Sub", x, y)


def mul(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x * y`."""
    return graph.op("Mul", x, y)


def div(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x / y`; integers truncate."""
    return graph.op("Div", x, y)


def pow(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x ** y`."""
    return graph.op("Pow", x, y)


def exp(graph: Graph, x: Value) -> Value:
    """Returns `e ** x`."""
    return graph.op("Exp", x)


def sqrt(graph: Graph, x: Value) -> Value:
    """Returns the square root."""
    return graph.op("Sqrt", x)


def maximum(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns the larger of each pair."""
    return graph.op("Max", x, y)


def minimum(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns the smaller of each pair."""
    return graph.op("Min", x, y)


def absolute(graph: Graph, x: Value) -> Value:
    """Returns `|x|`."""
    return graph.op("Abs", x)


def arange(graph: Graph, start: Operand, end: Operand) -> Value:
    """Returns the integers from `start` to `end`, `end` excluded, as int64."""
    return graph.op("Range", start, end, 1)


def cos(graph: Graph, x: Value) -> Value:
    """Returns the cosine of `x` in radians."""
    return graph.op("Cos", x)


def sin(graph: Graph, x: Value) -> Value:
    """Returns the sine of `x` in radians."""
    return graph.op("Sin", x)


def less(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x < y` as booleans."""
    return graph.op("Less", x, y)


def equal(graph: Graph, x: Operand, y: Operand) -> Value:
    """Returns `x == y` as booleans."""
    return graph.op("Equal", x, y)


def logical_and(graph: Graph, x: Value, y: Value) -> Value:
    """Returns whether both hold."""
    return graph.op("And", x, y)


def where(graph: Graph, condition: Value, x: Operand, y: Operand) -> Value:
    """Returns `x` where `condition` holds, else `y`."""
    return graph.op("Where", condition, x, y)


def relu(graph: Graph, x: Value) -> Value:
    """Returns `max(x, 0)`."""
    return graph.op("Relu", x)


def gelu(graph: Graph, x: Value, approximate: str = "none") -> Value:
    """GELU; `approximate="tanh"` is the form that GPT-2 calls gelu_new."""
    return graph.op("Gelu", x, approximate=approximate)


def swish(graph: Graph, x: Value) -> Value:
    """Returns `x * sigmoid(x)`, also called SiLU."""
    return graph.op("Swish", x)


def sigmoid(graph: Graph, x: Value) -> Value:
    """Returns `1 / (1 + exp(-x))`."""
    return graph.op("Sigmoid", x)


def tanh(graph: Graph, x: Value) -> Value:
    """Returns the hyperbolic tangent."""
    return graph.op("Tanh", x)


def softmax(graph: Graph, x: Value, axis: int = -1) -> Value:
    """Softmax along `axis`."""
    return graph.op("Softmax", x, axis=axis)


def reduce_max(graph: Graph, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    """Largest value along `axes`."""
    return graph.op("ReduceMax", x, list(axes), keepdims=int(keepdims))


def reduce_mean(graph: Graph, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    """Mean along `axes`."""
    return graph.op("ReduceMean", x, list(axes), keepdims=int(keepdims))


def reduce_l2(graph: Graph, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    """Square root of the sum of squares along `axes`."""
    return graph.op("ReduceL2", x, list(axes), keepdims=int(keepdims))


def argmax(graph: Graph, x: Value, axis: int, keepdims: bool = True) -> Value:
    """Index of the largest value along `axis`, the first of equal ones; int64."""
    return graph.op("ArgMax", x, axis=axis, keepdims=int(keepdims))


def layer_norm(graph: Graph, x: Value, weight: Value, bias: Value | None, epsilon: float) -> Value:
    """Layer normalisation over the last axis."""
    # Left out, not None: onnxruntime 1.32 crashes on a node whose last input is there, but empty.
    weights = (weight,) if bias is None else (weight, bias)
    return graph.op("LayerNormalization", x, *weights, axis=-1, epsilon=epsilon)


def rms_norm(graph: Graph, x: Value, weight: Value, epsilon: float) -> Value:
    """Root-mean-square normalisation over the last axis."""
    return graph.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon)


def rotary_embedding(
    graph: Graph, x: Value, cos: Value, sin: Value, num_heads: int, rotary_dim: int, interleaved: bool = False
) -> Value:
    """Rotates the first `rotary_dim` columns of each head.

    Args:
        graph: where the node goes.
        x: `[B, L, N*H]` with N = `num_heads`.
        cos: `[B, L, rotary_dim/2]`.
        sin: `[B, L, rotary_dim/2]`.
        num_heads: heads of `x`.
        rotary_dim: columns of a head to rotate; the others pass.
        interleaved: pairs are neighbours instead of halves.
    """
    return graph.op(
        "RotaryEmbedding",
        x,
        cos,
        sin,
        num_heads=num_heads,
        rotary_embedding_dim=rotary_dim,
        interleaved=int(interleaved),
    )


def gather(graph: Graph, x: Value, indices: Operand, axis: int = 0) -> Value:
    """Picks slices of `x` along `axis`."""
    return graph.op("Gather", x, indices, axis=axis)


def gather_nd(graph: Graph, x: Value, indices: Value, batch_dims: int = 0) -> Value:
    """Picks elements or slices of `x` by index tuples."""
    return graph.op("GatherND", x, indices, batch_dims=batch_dims)


def reshape(graph: Graph, x: Value, shape: Value | Sequence[int]) -> Value:
    """Reshapes; 0 keeps a dimension, -1 infers it."""
    return graph.op("Reshape", x, shape)


def transpose(graph: Graph, x: Value, perm: Sequence[int]) -> Value:
    """Permutes dimensions."""
    return graph.op("Transpose", x, perm=list(perm))


def concat(graph: Graph, values: Sequence[Value], axis: int) -> Value:
    """Joins values along `axis`."""
    return graph.op("Concat", *values, axis=axis)


def split(graph: Graph, x: Value, sizes: Sequence[int], axis: int = -1) -> list[Value]:
    """Cuts `x` along `axis` into pieces of the given sizes."""
    if len(sizes) == 1:
        return [x]
    return graph.op("Split", x, list(sizes), axis=axis, outputs=len(sizes))


def slice(
    graph: Graph,
    x: Value,
    starts: Value | Sequence[int],
    ends: Value | Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Value:
    """Takes `x[start:end:step]` along each of `axes`; starts and ends may be int64 values `[axes]`."""
    first, last = (limit if isinstance(limit, Value) else list(limit) for limit in (starts, ends))
    return graph.op("Slice", x, first, last, list(axes), list(steps))


def squeeze(graph: Graph, x: Value, axes: Sequence[int]) -> Value:
    """Removes dimensions of size 1."""
    return graph.op("Squeeze", x, list(axes))


def unsqueeze(graph: Graph, x: Value, axes: Sequence[int]) -> Value:
    """Adds dimensions of size 1."""
    return graph.op("Unsqueeze", x, list(axes))


def flatten(graph: Graph, x: Value, axis: int = 1) -> Value:
    """Reshapes to a matrix, splitting the dimensions at `axis`."""
    return graph.op("Flatten", x, axis=axis)


def expand(graph: Graph, x: Value, shape: Value | Sequence[int]) -> Value:
    """Broadcasts `x` to `shape`."""
    return graph.op("Expand", x, shape)


def shape(graph: Graph, x: Value, start: int = 0, end: int | None = None) -> Value:
    """Returns the dimensions `start:end` of `x` as int64."""
    return graph.op("Shape", x, start=start, end=end)


def cast(graph: Graph, x: Value, dtype: Any) -> Value:
    """Converts to a NumPy or ONNX dtype."""
    return graph.op("Cast", x, to=int(_dtype(dtype)))


def loop(
    graph: Graph, trip_count: Value | None, condition: Value | None, initial: Sequence[Value], body: ir.Graph
) -> Any:
    """Runs `body(iteration, condition, *state)` up to `trip_count` times; returns final states and scan outputs."""
    return graph.op("Loop", trip_count, condition, *initial, body=body, outputs=len(body.outputs) - 1)
