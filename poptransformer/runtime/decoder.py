# SPDX-License-Identifier: Apache-2.0
"""The decoder: the step graph with `Sample` at its end, so that one onnxruntime call gives the next tokens.

Where a token takes three milliseconds, what lies between two calls counts: handing the logits to Python and back took
a twentieth of the whole. Counting tokens in Python costs more than two nodes do, so the graph counts them too.
"""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.passes import attach_functions, chain
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.generator import SAMPLING_INPUTS
from poptransformer.state import BATCH, COUNTERS


def build_decoder(compiled: CompiledModel, chained: bool = False) -> ir.Model:
    """Appends the choice of the next token to the step graph.

    Args:
        compiled: the step graph.
        chained: put nodes into chains, where the model was to be fused.

    Inputs: the step's, of which `logit_positions` must be `[B, 1]`; `history` int64 `[B, T]`; the sampling inputs and
    `step` int64, `[B]` each.
    Outputs: `token` int64 `[B]`, the present states, and the `COUNTERS` after this step.
    """
    source = compiled.model
    graph = Graph.over(source.graph.clone())
    logits, *presents = list(graph.ir_graph.outputs)
    graph.ir_graph.outputs.clear()
    inputs = {value.name: value for value in graph.ir_graph.inputs}
    with graph.nameScope("sample"):
        history = graph.input("history", ir.DataType.INT64, [BATCH, "history"])
        settings = [graph.input(name, dtype, [BATCH]) for name, dtype in SAMPLING_INPUTS.items()]
        step = graph.input("step", ir.DataType.INT64, [BATCH])
        token = ops.sample_token(graph, logits, history, *settings, step)
        counted = ops.add(graph, inputs["past_lengths"], inputs["lengths"]), ops.add(graph, step, 1)
    graph.output(token, "token")
    graph.ir_graph.outputs.extend(presents)
    for value, counter in zip(counted, COUNTERS, strict=True):
        graph.output(value, counter.present)
    model = ir.Model(
        graph.ir_graph,
        ir_version=IR_VERSION,
        producer_name=source.producer_name,
        producer_version=source.producer_version,
        metadata_props=dict(source.metadata_props),
        functions=list(source.functions.values()),
    )
    attach_functions(model)
    if chained and compiled.info.fuse:
        chain(model)
    return model
