# SPDX-License-Identifier: Apache-2.0
"""Bytes of weights that one step of an ONNX decoder reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

# Ops that read a few rows of a table; the tables of sines and cosines go into the ops of the attention.
LOOKUPS = ("Gather", "Embedding", "Attention")
# Ops that only pass an initializer on.
VIEWS = ("Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze")


def weight_bytes(path: Path) -> int:
    """Bytes of all initializers but those that only lookups use."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    sizes = {tensor.name: _bytes(onnx, tensor) for tensor in graph.initializer}
    origin = {node.output[0]: node.input[0] for node in graph.node if node.op_type in VIEWS}
    used: set[str] = set()
    for node in graph.node:
        if node.op_type in VIEWS or any(word in node.op_type for word in LOOKUPS):
            continue
        for name in node.input:
            while name in origin and name not in sizes:
                name = origin[name]
            used.add(name)
    return sum(size for name, size in sizes.items() if name in used)


def _bytes(onnx: Any, tensor: Any) -> int:
    bits = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}.get(tensor.data_type)
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return math.prod(tensor.dims) * bits // 8
