# SPDX-License-Identifier: Apache-2.0
"""`Sample`: from logits to the next token of every row, filters and random draw included.

Filters and their order are those of transformers' `generate` (RepetitionPenaltyLogitsProcessor,
TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper). The draw is counter-based: it depends
on a row's seed and step alone, so a row's text is the same whatever it shares a batch with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, branch, register_function

_FLOAT = int(ir.DataType.FLOAT)
_INT64 = int(ir.DataType.INT64)
_MINUS_INFINITY = float(np.finfo(np.float32).min)
_MASK32 = 0xFFFFFFFF


def _column(op: Any, x: Any) -> Any:
    return op.Unsqueeze(x, [1])


def _mix(op: Any, x: Any) -> Any:
    """A 32-bit integer hash with full avalanche, in int64 so that no product overflows."""
    x = op.BitwiseXor(x, op.Div(x, 1 << 16))
    x = op.BitwiseAnd(op.Mul(x, 0x21F0AAAD), _MASK32)
    x = op.BitwiseXor(x, op.Div(x, 1 << 15))
    x = op.BitwiseAnd(op.Mul(x, 0x735A2D97), _MASK32)
    return op.BitwiseXor(x, op.Div(x, 1 << 15))


def uniform(op: Any, seed: Any, step: Any) -> Any:
    """Uniform number in [0, 1) of 24 bits for each row's (seed, step), both int64 `[B]` and not negative."""
    low, high = op.BitwiseAnd(seed, _MASK32), op.Div(seed, 1 << 32)
    state = _mix(op, op.BitwiseXor(low, _mix(op, high)))
    bits = op.Div(_mix(op, op.BitwiseXor(state, _mix(op, step))), 1 << 8)
    return op.Mul(op.Cast(bits, to=_FLOAT), float(2.0**-24))


def penalise(op: Any, logits: Any, history: Any, penalty: Any) -> Any:
    """Divides positive and multiplies negative logits of the tokens in `history` by `penalty`."""
    seen = op.GatherElements(logits, history, axis=1)
    column = _column(op, penalty)
    changed = op.Where(op.Less(seen, 0.0), op.Mul(seen, column), op.Div(seen, column))
    return op.ScatterElements(logits, history, changed, axis=1)


def filtered(op: Any, logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> Any:
    """Returns the distribution `[B, V]` left by temperature, top-k, top-p and min-p."""
    positive = op.Where(op.Greater(temperature, 0.0), temperature, 1.0)
    scores = op.Div(logits, _column(op, positive))
    vocabulary = op.Shape(logits, start=1, end=2)
    descending, order = op.TopK(scores, vocabulary, axis=1, largest=1, sorted=1, _outputs=2)
    # top-k keeps everything not below the k-th value: ties with it stay, as in transformers.
    last = op.Sub(op.Max(op.Min(top_k, vocabulary), 1), 1)
    threshold = op.GatherElements(descending, _column(op, last), axis=1)
    threshold = op.Where(_column(op, op.Greater(top_k, 0)), threshold, _MINUS_INFINITY)
    descending = op.Where(op.Less(descending, threshold), _MINUS_INFINITY, descending)
    # top-p drops the tail whose summed probability is at most 1 - p, but never the most likely token.
    tail = op.CumSum(op.Softmax(descending, axis=1), op.Constant(value_int=1), reverse=1)
    drop = op.LessOrEqual(tail, op.Sub(1.0, _column(op, top_p)))
    drop = op.And(drop, op.Less(_column(op, top_p), 1.0))
    rank = op.Range(0, op.Squeeze(vocabulary, [0]), 1)
    drop = op.And(drop, op.Greater(op.Unsqueeze(rank, [0]), 0))
    descending = op.Where(drop, _MINUS_INFINITY, descending)
    # min-p drops what is less likely than p times the most likely token.
    probability = op.Softmax(descending, axis=1)
    floor = op.Mul(op.ReduceMax(probability, [1], keepdims=1), _column(op, min_p))
    descending = op.Where(op.Less(probability, floor), _MINUS_INFINITY, descending)
    return op.ScatterElements(op.Mul(scores, 0.0), order, op.Softmax(descending, axis=1), axis=1)


def draw(op: Any, probabilities: Any, seed: Any, step: Any) -> Any:
    """Inverse of the cumulative distribution in vocabulary order."""
    cumulative = op.CumSum(probabilities, op.Constant(value_int=1))
    total = op.ReduceMax(cumulative, [1], keepdims=1)
    reached = op.LessOrEqual(cumulative, op.Mul(total, _column(op, uniform(op, seed, step))))
    count = op.ReduceSum(op.Cast(reached, to=_INT64), [1], keepdims=0)
    return op.Min(count, op.Sub(op.Shape(probabilities, start=1, end=2), 1))


INPUTS = ("logits", "history", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "step")


@register_function(*INPUTS)
def Sample(  # noqa: N802 - op type
    op: Any,
    logits: Any,
    history: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    repetition_penalty: Any,
    seed: Any,
    step: Any,
) -> Any:
    """Next token and the distribution it was drawn from."""
    logits = op.Reshape(logits, op.Concat(op.Shape(logits, end=1), op.Shape(logits, start=-1), axis=0), allowzero=1)
    logits = penalise(op, logits, history, repetition_penalty)
    likeliest = op.ArgMax(logits, axis=1, keepdims=0)
    greedy = op.Or(op.LessOrEqual(temperature, 0.0), op.Equal(top_k, 1))
    vocabulary = op.Squeeze(op.Shape(logits, start=1, end=2), [0])
    certain = op.OneHot(likeliest, vocabulary, op.Constant(value_floats=[0.0, 1.0]), axis=1)

    def all_greedy(op: Any) -> Any:
        return [op.Identity(likeliest), op.Identity(certain)]

    def some_random(op: Any) -> Any:
        probabilities = filtered(op, logits, temperature, top_k, top_p, min_p)
        token = op.Where(greedy, likeliest, draw(op, probabilities, seed, step))
        return [token, op.Where(_column(op, greedy), certain, probabilities)]

    all_rows = op.ReduceMin(op.Cast(greedy, to=_INT64), keepdims=0)
    return op.If(
        op.Cast(all_rows, to=int(ir.DataType.BOOL)),
        then_branch=branch(op, all_greedy, "greedy"),
        else_branch=branch(op, some_random, "random"),
        _outputs=2,
    )


@register_function(*INPUTS)
def SampleToken(op: Any, *inputs: Any) -> Any:  # noqa: N802 - op type
    """The token alone: a node cannot leave an output out where onnxruntime puts the body in its place."""
    return Sample(op, *inputs)[0]


def sample(graph: Graph, logits: ir.Value, history: ir.Value, *settings: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Chooses the next token of every row.

    Args:
        graph: where the node goes.
        logits: fp32 `[B, V]` or `[B, 1, V]`.
        history: int64 `[B, T]`, the row's tokens so far, filled up with any of them.
        *settings: one value per row `[B]` each: temperature (fp32, 0 is greedy), top_k (int64, 1 is greedy, 0 is off),
            top_p (fp32, 1 is off), min_p (fp32, 0 is off), repetition_penalty (fp32, 1 is off), seed (int64 >= 0),
            step (int64, tokens generated so far).

    Returns:
        Tokens int64 `[B]` and the distributions fp32 `[B, V]` they were drawn from.
    """
    token, probabilities = graph.op("Sample", logits, history, *settings, domain=DOMAIN, outputs=2)
    batch, vocabulary = (logits.shape[0], logits.shape[-1]) if logits.shape else (None, None)
    token.dtype, token.shape = ir.DataType.INT64, ir.Shape([batch])
    probabilities.dtype, probabilities.shape = ir.DataType.FLOAT, ir.Shape([batch, vocabulary])
    return token, probabilities


def sample_token(graph: Graph, logits: ir.Value, history: ir.Value, *settings: ir.Value) -> ir.Value:
    """Returns the tokens that `sample` gives, without writing out the distributions."""
    token = graph.op("SampleToken", logits, history, *settings, domain=DOMAIN)
    token.dtype, token.shape = ir.DataType.INT64, ir.Shape([logits.shape[0] if logits.shape else None])
    return token
