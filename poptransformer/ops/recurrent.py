# SPDX-License-Identifier: Apache-2.0
"""`WKV`: the recurrence of RWKV-4 over all tokens of a step."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function


@register_function("decay", "bonus", "key", "value", "lengths", "numerator", "denominator", "maximum")
def WKV(  # noqa: N802 - op type
    op: Any,
    decay: Any,
    bonus: Any,
    key: Any,
    value: Any,
    lengths: Any,
    numerator: Any,
    denominator: Any,
    maximum: Any,
) -> Any:
    """Weighted means of the values so far, by a `Scan` over the tokens.

    The sums are kept relative to `exp(maximum)`. Tokens from `lengths[b]` on change no state and give zeros.
    """
    count = op.Squeeze(op.Shape(key, start=1, end=2), [0])
    is_real = op.Less(op.Unsqueeze(op.Range(0, count, 1), [0]), op.Unsqueeze(lengths, [1]))
    # A Scan takes slices of one rank less: the mask keeps a last dimension to broadcast over the channels.
    masks = op.Unsqueeze(is_real, [2])
    names = ("numerator_in", "denominator_in", "maximum_in", "key_in", "value_in", "mask_in")
    types = [ir.TensorType(ir.DataType.FLOAT)] * 5 + [ir.TensorType(ir.DataType.BOOL)]
    inputs = [ir.Value(name=name, type=kind) for name, kind in zip(names, types, strict=True)]

    def token(n: Any, d: Any, m: Any, k: Any, v: Any, mask: Any) -> list[Any]:
        body = op.builder.owner.builder.op
        now = body.Add(k, bonus)
        top = body.Max(m, now)
        before, weight = body.Exp(body.Sub(m, top)), body.Exp(body.Sub(now, top))
        mean = body.Div(body.Add(body.Mul(before, n), body.Mul(weight, v)), body.Add(body.Mul(before, d), weight))
        faded = body.Add(m, decay)
        following = body.Max(faded, k)
        keep, add = body.Exp(body.Sub(faded, following)), body.Exp(body.Sub(k, following))
        new_n = body.Add(body.Mul(keep, n), body.Mul(add, v))
        new_d = body.Add(body.Mul(keep, d), add)
        return [
            body.Where(mask, new_n, n),
            body.Where(mask, new_d, d),
            body.Where(mask, following, m),
            body.Where(mask, mean, 0.0),
        ]

    scanned = op.builder.owner.subgraph(token, inputs, name="token")
    *states, output = op.Scan(
        numerator,
        denominator,
        maximum,
        key,
        value,
        masks,
        body=scanned,
        num_scan_inputs=3,
        scan_input_axes=[1, 1, 1],
        scan_output_axes=[1],
        _outputs=4,
    )
    return output, *states


def wkv(
    graph: Graph,
    decay: ir.Value,
    bonus: ir.Value,
    key: ir.Value,
    value: ir.Value,
    lengths: ir.Value,
    numerator: ir.Value,
    denominator: ir.Value,
    maximum: ir.Value,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """RWKV-4's attention: each channel's mean of the values so far, weighted by decayed exponentials of the keys.

    Source: https://arxiv.org/abs/2305.13048, section 3.1.2; transformers `rwkv_linear_attention_cpu`.

    Args:
        graph: where the node goes.
        decay: fp32 `[D]`, added to the logarithm of every weight per token: `-exp(time_decay)` of the checkpoint.
        bonus: fp32 `[D]`, added for the current token: the checkpoint's `time_first`.
        key: fp32 `[B, L, D]`.
        value: fp32 `[B, L, D]`.
        lengths: int64 `[B]`, real tokens of each row.
        numerator: fp32 `[B, D]`, weighted sum of the values so far; 0 at first.
        denominator: fp32 `[B, D]`, sum of the weights; 0 at first.
        maximum: fp32 `[B, D]`, logarithm that both are relative to; -1e38 at first.

    Returns:
        Output `[B, L, D]`, and the three states after the row's last real token.
    """
    outputs = graph.op(
        "WKV", decay, bonus, key, value, lengths, numerator, denominator, maximum, domain=DOMAIN, outputs=4
    )
    for result, like in zip(outputs, (key, numerator, denominator, maximum), strict=True):
        result.dtype, result.shape = like.dtype, like.shape
    return tuple(outputs)
