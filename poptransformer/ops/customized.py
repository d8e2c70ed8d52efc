# SPDX-License-Identifier: Apache-2.0
"""Our own ops: for each, the function that adds the node and the body that defines it in standard ONNX.

The bodies are the specification: the native kernels of `custom_ops/` are tested against them, and onnxruntime runs
them where the library is not loaded.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function

_FLOAT32 = int(ir.DataType.FLOAT)


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
