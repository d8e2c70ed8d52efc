# SPDX-License-Identifier: Apache-2.0
"""Rotations go into the attention that alone reads them, where there is an op for both."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir
import pytest

from poptransformer import ops, passes
from poptransformer.graph import DOMAIN, IR_VERSION, Graph
from tests.unit.passes.fusing import attributes, op_types

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64
HEADS, KV_HEADS, H = 4, 2, 16
FUSED = "RotaryCachedAttention"


@dataclasses.dataclass
class Rotation:
    """How queries or keys are rotated; None in place of one is not at all."""

    rotary_dim: int = H
    interleaved: bool = False
    angles: int = 0
    stage: int | None = None
    positions: bool = False


def model(query: Rotation | None, key: Rotation | None, also: str = "") -> ir.Model:
    """One attention; `also` names a rotated value that something else reads too."""
    graph = Graph()
    inputs = {
        name: graph.input(name, FLOAT, ["batch", "tokens", heads * H])
        for name, heads in (("query", HEADS), ("key", KV_HEADS), ("value", KV_HEADS))
    }
    pasts = [graph.input(name, FLOAT, ["batch", KV_HEADS, "slots", H]) for name in ("past_key", "past_value")]
    lengths = graph.input("past_lengths", INT, ["batch"])
    positions = graph.input("positions", INT, ["batch", "tokens"])

    def rotated(name: str, rotation: Rotation | None, heads: int) -> ir.Value:
        if rotation is None:
            return inputs[name]
        half = rotation.rotary_dim // 2
        leading: list[Any] = [64] if rotation.positions else ["batch", "tokens"]
        names = (f"cos{rotation.angles}", f"sin{rotation.angles}")
        for angle in names:
            if angle not in inputs:
                inputs[angle] = graph.input(angle, FLOAT, [*leading, half])
        rotary = {"num_heads": heads, "rotary_embedding_dim": rotation.rotary_dim, "interleaved": rotation.interleaved}
        with graph.annotate(pipeline_stage=rotation.stage):
            tables = [inputs[angle] for angle in names] + ([positions] if rotation.positions else [])
            return graph.op("RotaryEmbedding", inputs[name], *tables, **rotary)

    with graph.nameScope("attn"):
        q, k = rotated("query", query, HEADS), rotated("key", key, KV_HEADS)
        heads = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "scale": 0.25}
        outputs = ops.cached_attention(graph, q, k, inputs["value"], *pasts, lengths, **heads)
    for name, value in zip(("output", "present_key", "present_value"), outputs, strict=True):
        graph.output(value, name)
    if also:
        graph.output(ops.relu(graph, {"query": q, "key": k}[also]), "also")
    made = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.fuse(made)
    return made


@pytest.mark.parametrize(("rotary_dim", "interleaved"), [(H, False), (H // 2, False), (H // 2, True)])
def test_rotations_and_attention_become_one(rotary_dim: int, interleaved: bool) -> None:
    rotation = Rotation(rotary_dim, interleaved)
    (node,) = model(rotation, rotation).graph
    assert (node.op_type, node.domain, node.name) == (FUSED, DOMAIN, f"attn/{FUSED}")
    names = ["query", "key", "value", "cos0", "sin0", "past_key", "past_value", "past_lengths"]
    assert [value.name for value in node.inputs] == names
    assert attributes(node) == {
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "scale": 0.25,
        "rotary_dim": rotary_dim,
        "interleaved": int(interleaved),
    }
    assert [value.name for value in node.outputs] == ["output", "present_key", "present_value"]


@pytest.mark.parametrize(
    ("query", "key", "also"),
    [
        (None, None, ""),
        (Rotation(), None, ""),
        (Rotation(), Rotation(angles=1), ""),
        (Rotation(8), Rotation(8, interleaved=True), ""),
        (Rotation(), Rotation(), "query"),
        (Rotation(), Rotation(), "key"),
        (Rotation(stage=1), Rotation(), ""),
        (Rotation(positions=True), Rotation(positions=True), ""),
    ],
)
def test_what_stays(query: Rotation | None, key: Rotation | None, also: str) -> None:
    assert FUSED not in op_types(model(query, key, also))
