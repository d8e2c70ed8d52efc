# SPDX-License-Identifier: Apache-2.0
"""No rows, no tokens, no columns: every op returns outputs of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from packed_weight import draw_weight, rounded, rounding_bound
from valid_nodes import (
    Node,
    all_gather,
    all_ops,
    attention,
    fused_linear,
    linear,
    quantized_embedding,
    quantized_linear,
    round_to_float8,
    sample,
    wkv,
)

FORMATS = ["int4", "int8", "e4m3fn", "e5m2fnuz"]
CASES: list[tuple[str, Node, list[tuple[int, ...]]]] = [
    ("no columns", all_gather(0), [(2, 3, 0)]),
    ("no rows", linear(rows=0), [(0, 3, 4)]),
    ("K=0", linear(K=0), [(2, 3, 4)]),
    ("N=0", linear(N=0), [(2, 3, 0)]),
    *((f"no rows {format}", quantized_linear(format, rows=0), [(0, 3, 20)]) for format in FORMATS),
    *((f"K=0 {format}", quantized_linear(format, K=0), [(2, 3, 20)]) for format in FORMATS),
    *((f"N=0 {format}", quantized_linear(format, N=0), [(2, 3, 0)]) for format in FORMATS),
    *((f"no ids {format}", quantized_embedding(format, 0), [(2, 0, 40)]) for format in FORMATS),
    ("no rows", round_to_float8(rows=0), [(0, 3, 5)]),
    *(
        (f"no rows {cache}", attention(cache, rotary, batch=0), [(0, 3, 32), (0, 2, 6, 8), (0, 2, 6, 8)])
        for cache in ("float32", "float16", "uint8")
        for rotary in (0, 4)
    ),
    *(
        (f"no tokens {cache}", attention(cache, rotary, tokens=0), [(2, 0, 32), (2, 2, 6, 8), (2, 2, 6, 8)])
        for cache in ("float32", "float16", "uint8")
        for rotary in (0, 4)
    ),
    ("no rows", wkv(batch=0), [(0, 3, 5), *[(0, 5)] * 3]),
    ("no tokens", wkv(tokens=0), [(2, 0, 5), *[(2, 5)] * 3]),
    ("no channels", wkv(width=0), [(2, 3, 0), *[(2, 0)] * 3]),
    ("no rows", sample(rows=0), [(0,), (0, 7)]),
    ("no rows", sample("SampleToken", rows=0), [(0,)]),
    *((f"no rows {format}", fused_linear(format, rows=0), [(0, 3, 20)]) for format in ("float", *FORMATS)),
    *((f"no tokens {format}", fused_linear(format, tokens=0), [(2, 0, 20)]) for format in ("float", *FORMATS)),
]


def test_every_op_is_here() -> None:
    assert {node.op for _, node, _ in CASES} == all_ops()


@pytest.mark.parametrize(("name", "node", "shapes"), CASES, ids=[f"{node.op}-{name}" for name, node, _ in CASES])
@pytest.mark.parametrize("constant", [False, True], ids=["inputs", "initializers"])
def test_empty_inputs(kernels: Any, name: str, node: Node, shapes: list[tuple[int, ...]], constant: bool) -> None:
    outputs = node.run(kernels, constant)
    assert [output.shape for output in outputs] == shapes
    if name.startswith("K=0"):  # an empty sum, and the bias
        np.testing.assert_array_equal(outputs[0], np.broadcast_to(node.inputs["bias"], shapes[0]))
    if name.startswith("no tokens") and len(outputs) > 1:  # states stay as they were
        states = [array for name, array in node.inputs.items() if name.startswith(("past_k", "past_v"))]
        states += [array for name, array in node.inputs.items() if name in ("numerator", "denominator", "maximum")]
        for present, past in zip(outputs[1:], states, strict=True):
            np.testing.assert_array_equal(present, past)


@pytest.mark.parametrize(("M", "K", "N"), [(0, 40, 20), (2, 0, 20), (2, 40, 0), (0, 0, 0)])
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_the_reference_takes_nothing_too(format: str, M: int, K: int, N: int) -> None:
    """What other tests compare with must not fail before the kernel does."""
    weight = draw_weight(format, N, K, 32)
    x = np.zeros((M, K), np.float32)
    assert rounded(x).shape == (M, K)
    assert rounding_bound(x, weight).shape == (M, N)
