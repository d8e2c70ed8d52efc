# SPDX-License-Identifier: Apache-2.0
"""A small valid node of every op of ours, for tests that spoil it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from attention_case import Case as AttentionCase
from onnx import TensorProto
from packed_weight import draw_weight

import poptransformer.ops  # noqa: F401 - registers the functions
from poptransformer.graph import function_names, function_spec
from poptransformer.passes.fuse_linear import FUSED_LINEAR

_FUSED_WEIGHTS = [f"{part}{i}" for i in range(3) for part in ("weight", "scales", "offsets", "bias")]


@dataclasses.dataclass
class Node:
    """One node with its inputs.

    Attributes:
        op: op type.
        inputs: by the op's own names, in order; None for an optional one that is left out.
        outputs: ONNX element types.
        attributes: of the node.
        optional: inputs that may be left out.
        free: axes of inputs that may have any size, whatever the other inputs are.
    """

    op: str
    inputs: dict[str, np.ndarray | None]
    outputs: list[int] = dataclasses.field(default_factory=lambda: [TensorProto.FLOAT])
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    optional: set[str] = dataclasses.field(default_factory=set)
    free: set[tuple[str, int]] = dataclasses.field(default_factory=set)

    def __str__(self) -> str:
        return self.op

    def run(self, kernels: Any, constant: bool = False, **changes: np.ndarray | None) -> list[np.ndarray]:
        """Runs it on a kernel, with some inputs changed; weights may be initializers."""
        inputs = self.inputs | changes
        weights = [
            i for i, name in enumerate(inputs) if name.startswith(("weight", "codes", "scales", "offsets", "bias"))
        ]
        return kernels.run(
            self.op, list(inputs.values()), self.outputs, None, weights if constant else (), **self.attributes
        )


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def linear(rows: int = 2, K: int = 5, N: int = 4) -> Node:
    inputs = {"x": draw(rows, 3, K), "weight": draw(N, K), "bias": draw(N)}
    return Node("Linear", inputs, optional={"bias"}, free={("x", 0), ("x", 1)})


def quantized_linear(format: str = "int4", rows: int = 2, K: int = 40, N: int = 20) -> Node:
    packed = draw_weight("int4" if format == "int4" else "int8", N, K, 32, offsets=format == "int4").packed()
    if "offsets" not in packed:
        packed["offsets"] = None
    if format not in ("int4", "int8"):
        packed |= {"codes": packed["codes"] & 0x77, "scales": packed["scales"].astype(np.float32)}
    attributes = {"format": format, "columns": N}
    inputs = {"x": draw(rows, 3, K), **packed, "bias": draw(N)}
    free = {("x", 0), ("x", 1), ("x", 2)}  # padding hides how many columns there are
    return Node("QuantizedLinear", inputs, attributes=attributes, optional={"offsets", "bias"}, free=free)


def quantized_embedding(format: str = "int4", count: int = 3) -> Node:
    table = quantized_linear(format, N=20, K=40)
    inputs = {
        "ids": np.arange(2 * count).reshape(2, count),
        **{n: table.inputs[n] for n in ("codes", "scales", "offsets")},
    }
    attributes = {**table.attributes, "depth": 40}
    free = {("ids", 0), ("ids", 1), ("codes", 1)}
    return Node("QuantizedEmbedding", inputs, attributes=attributes, optional={"offsets"}, free=free)


def round_to_float8(rows: int = 2) -> Node:
    inputs = {"x": draw(rows, 3, 5), "scale": np.array(0.5, np.float32)}
    free = {("x", 0), ("x", 1), ("x", 2)}
    attributes = {"format": "e4m3fn", "scaling": "amax"}
    return Node("RoundToFloat8", inputs, attributes=attributes, optional={"scale"}, free=free)


def attention(cache: str = "float32", rotary_dim: int = 0, batch: int = 2, tokens: int = 3) -> Node:
    case = AttentionCase(batch, tokens, 4, 2, 8, 6, [1, 3][:batch], cache, rotary_dim, prefix=[1, 1][:batch])
    caches = ["past_key", "past_value", "past_lengths", "prefix_lengths"]
    names = ["query", "key", "value", *["cos", "sin"] * (rotary_dim > 0), *caches]
    inputs = dict(zip(names, case.inputs(), strict=True))
    return Node(case.op, inputs, case.output_types, case.attributes, optional={"prefix_lengths"})


def wkv(batch: int = 2, tokens: int = 3, width: int = 5) -> Node:
    states = {name: 1 + draw(batch, width) ** 2 for name in ("numerator", "denominator", "maximum")}
    inputs = {"decay": -(draw(width) ** 2), "bonus": draw(width), "key": draw(batch, tokens, width)}
    inputs |= {"value": draw(batch, tokens, width), "lengths": np.full(batch, tokens), **states}
    return Node("WKV", inputs, [TensorProto.FLOAT] * 4)


def sample(op: str = "Sample", rows: int = 2) -> Node:
    inputs = {"logits": draw(rows, 7), "history": np.zeros((rows, 3), np.int64)}
    settings = {
        "temperature": 1.0,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 1,
        "step": 0,
    }
    for name, value in settings.items():
        inputs[name] = np.full(rows, value, np.float32 if isinstance(value, float) else np.int64)
    outputs = [TensorProto.INT64, TensorProto.FLOAT][: 1 + (op == "Sample")]
    return Node(op, inputs, outputs, free={("logits", 1), ("history", 1)})


def fused_linear(format: str = "int4", rows: int = 2, tokens: int = 3) -> Node:
    """Norm, two products, a gate and a residual."""
    weights = dict.fromkeys(_FUSED_WEIGHTS)
    for i in range(2):
        if format == "float":
            weights |= {f"weight{i}": draw(20, 40), f"bias{i}": draw(20)}
            continue
        packed = quantized_linear(format).inputs
        weights |= {f"weight{i}": packed["codes"], f"bias{i}": packed["bias"]}
        weights |= {f"{part}{i}": packed[part] for part in ("scales", "offsets")}
    inputs = {"x": draw(rows, tokens, 40), "norm_weight": draw(40), "norm_bias": draw(40)}
    inputs |= {"residual": draw(rows, tokens, 20), **weights}
    optional = {"norm_bias", "residual", *(name for name in weights if name.startswith(("offsets", "bias")))}
    attributes = {"norm": "layer", "epsilon": 1e-5, "activation": "silu", "gated": 1, "columns": [20, 20]}
    attributes |= {"splits": [1, 1], "formats": f"{format} {format}"}
    return Node(FUSED_LINEAR, inputs, attributes=attributes, optional=optional)


def all_gather(columns: int = 5) -> Node:
    """One replica alone."""
    inputs = {"x": draw(2, 3, columns)}
    return Node("AllGather", inputs, attributes={"replicas": 1}, free={("x", 0), ("x", 1), ("x", 2)})


NODES = [
    all_gather(),
    linear(),
    quantized_linear("int4"),
    quantized_linear("int8"),
    quantized_linear("e4m3fn"),
    quantized_embedding("int4"),
    quantized_embedding("int8"),
    quantized_embedding("e5m2fnuz"),
    round_to_float8(),
    attention(),
    attention("float16"),
    attention("uint8", 4),
    attention("float32", 8),
    wkv(),
    sample(),
    sample("SampleToken"),
    fused_linear("float"),
    fused_linear("int4"),
    fused_linear("e4m3fn"),
]


# They take any shape, so none can be wrong, and some need a second rank: test_collectives.py has their errors.
OF_ANY_SHAPE = {"AllReduce", "Send", "Recv"}


def all_ops() -> set[str]:
    """Every op type that the library must have a kernel for and whose inputs have a shape of their own."""
    return {*function_names(), FUSED_LINEAR} - OF_ANY_SHAPE


def names_of(op: str) -> list[str]:
    """Names of an op's inputs, as its function has them."""
    return list(function_spec(op).inputs)
