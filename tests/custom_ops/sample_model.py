# SPDX-License-Identifier: Apache-2.0
"""A model of one Sample node, its inputs, and the definition of its draw."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from poptransformer import native, ops
from poptransformer.graph import Graph, onnx_function

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "step")
OFF = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1, "seed": 0, "step": 0}


@functools.cache
def session(kernel: bool, probabilities: bool = True) -> ort.InferenceSession:
    graph = Graph()
    logits = graph.input("logits", ir.DataType.FLOAT, ["B", "V"])
    history = graph.input("history", ir.DataType.INT64, ["B", "T"])
    types = [ir.DataType.FLOAT if name in FLOATS else ir.DataType.INT64 for name in SETTINGS]
    settings = [graph.input(name, dtype, ["B"]) for name, dtype in zip(SETTINGS, types, strict=True)]
    token, distribution = ops.sample(graph, logits, history, *settings)
    graph.output(token, "token")
    if probabilities:
        graph.output(distribution, "probabilities")
    model = ir.serde.serialize_model(ir.Model(graph.ir_graph, ir_version=11, functions=[onnx_function("Sample")]))
    if not probabilities:
        model.graph.node[0].output[:] = ["token", ""]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # tests of errors are not worth a log
    if kernel and not native.load(options):
        pytest.skip("the custom ops are not built: run `make`")
    return ort.InferenceSession(model.SerializeToString(), options)


def feeds(logits, history=None, **settings) -> dict[str, np.ndarray]:
    logits = np.asarray(logits, np.float32)
    rows = len(logits)
    arrays = {"logits": logits, "history": np.zeros((rows, 1)) if history is None else history}
    for name, value in {**OFF, **settings}.items():
        arrays[name] = np.broadcast_to(value, (rows,))
    return {
        name: np.ascontiguousarray(x, np.float32 if name in (*FLOATS, "logits") else np.int64)
        for name, x in arrays.items()
    }


def run(kernel: bool, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    tokens, probabilities = session(kernel).run(None, inputs)
    return tokens, probabilities


def uniform(seed: int, step: int) -> float:
    """The definition of the draw, in Python's integers."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0x735A2D97 % 2**32
        return x ^ x >> 15

    high, low = divmod(int(seed), 2**32)
    return (mix(mix(low ^ mix(high)) ^ mix(int(step))) >> 8) / 2**24


def random_settings(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {
        "temperature": rng.choice([0, 0.5, 0.7, 1, 1.5], rows),
        "top_k": rng.choice([0, 0, 1, 2, 5, 50, 500, 10**9, -1], rows),
        "top_p": rng.choice([1, 1.5, 0.9, 0.5, 0.1, 0.99, 0, -2], rows),
        "min_p": rng.choice([0, 0, 0.05, 0.3, 1, -1], rows),
        "repetition_penalty": rng.choice([1, 1, 1.3, 0.7], rows),
        "seed": rng.choice([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, rng.integers(2**63)], rows),
        "step": rng.choice([0, 1, 2, 1000, 2**40], rows),
    }
