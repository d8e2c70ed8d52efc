# SPDX-License-Identifier: Apache-2.0
"""A lookup, two MLPs and a head, small enough to compute in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer import ops, passes
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.quantization import PackedWeight
from poptransformer.quantization_report import QuantizationReport
from poptransformer.recipe import Recipe
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.ort_session import make_session

V, D, M = 50, 40, 70
IDS = np.array([[3, 1, 49], [7, 7, 0]])
random = np.random.default_rng(0)
TABLE, UP, DOWN = (random.standard_normal(shape).astype(np.float32) for shape in ((V, D), (M, D), (D, M)))


def built(tied: bool = True, table: np.ndarray = TABLE) -> ir.Model:
    """A lookup, an MLP of two products and a head, before the pass."""
    graph = Graph()
    ids = graph.input("ids", ir.DataType.INT64, ["batch", "tokens"])
    embedding = graph.initializer(table, "model.embed.weight")
    with graph.nameScope("model"):
        with graph.nameScope("embed"):
            x = ops.gather(graph, embedding, ids)
        for layer in range(2):
            with graph.nameScope(f"layers.{layer}"), graph.nameScope("mlp"), graph.annotate(ipu=layer):
                with graph.nameScope("up"):
                    up = ops.matmul(graph, x, graph.initializer(UP.T, f"model.layers.{layer}.mlp.up.weight"))
                with graph.nameScope("down"):
                    down = graph.initializer(DOWN.T, f"model.layers.{layer}.mlp.down.weight")
                    x = ops.add(graph, x, ops.matmul(graph, ops.relu(graph, up), down))
    with graph.nameScope("lm_head"):
        head = ops.transpose(graph, embedding, [1, 0]) if tied else graph.initializer(TABLE.T, "lm_head.weight")
        graph.output(ops.matmul(graph, x, head), "logits")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    passes.matmul_to_linear(model)
    return model


def quantized(precision: Any, tied: bool = True, **details: Any) -> tuple[ir.Model, QuantizationReport]:
    model = built(tied)
    report = passes.quantize(model, Recipe.of(precision, details))
    passes.attach_functions(model)
    return model, report


def run(model: ir.Model) -> np.ndarray:
    return make_session(model, SessionSettings(threads=1, use_native=False)).run(["logits"], {"ids": IDS})[0]


def unpacked(model: ir.Model, name: str) -> np.ndarray:
    """The values of a weight, packed or not."""
    weights = {key: value.const_value.numpy() for key, value in model.graph.initializers.items()}
    if name in weights:
        return weights[name].astype(np.float32)
    node = next(iter(model.graph.initializers[f"{name}.codes"].uses())).node
    parts = [weights.get(f"{name}.{part}") for part in ("codes", "scales", "offsets")]
    format, rows = node.attributes["format"].as_string(), node.attributes["columns"].as_int()
    depth = {"up": D, "down": M}.get(name.split(".")[-2], D)
    blocks = parts[1].shape[1]
    block = 0 if blocks == 1 and parts[0].shape[1] > 1 else parts[0].shape[1] * 32 // blocks
    return PackedWeight(format, rows, depth, block, *parts).dequantize()


def reference(model: ir.Model, tied: bool = True) -> np.ndarray:
    """What the graph must compute, in numpy, from its own dequantized weights."""
    x = unpacked(model, "model.embed.weight")[IDS]
    for layer in range(2):
        up = x @ unpacked(model, f"model.layers.{layer}.mlp.up.weight").T
        x = x + np.maximum(up, 0) @ unpacked(model, f"model.layers.{layer}.mlp.down.weight").T
    return x @ unpacked(model, "model.embed.weight" if tied else "lm_head.weight").T


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type not in ("Relu", "Add")]
