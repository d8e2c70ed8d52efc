# SPDX-License-Identifier: Apache-2.0
"""The sampler: logits to tokens, as a graph of its own for those who step themselves."""

from __future__ import annotations

import functools

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.passes import attach_functions
from poptransformer.runtime.generator import SAMPLING_INPUTS
from poptransformer.state import BATCH


@functools.cache
def build_sampler() -> ir.Model:
    """Builds the graph `logits, history, settings -> token, probabilities`."""
    graph = Graph("sampler")
    logits = graph.input("logits", ir.DataType.FLOAT, [BATCH, "chosen", "vocabulary"])
    history = graph.input("history", ir.DataType.INT64, [BATCH, "history"])
    settings = [graph.input(name, dtype, [BATCH]) for name, dtype in SAMPLING_INPUTS.items()]
    step = graph.input("step", ir.DataType.INT64, [BATCH])
    flat = ops.reshape(graph, logits, [0, -1])
    token, probabilities = ops.sample(graph, flat, history, *settings, step)
    graph.output(token, "token")
    graph.output(probabilities, "probabilities")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION, producer_name="poptransformer")
    attach_functions(model)
    return model
