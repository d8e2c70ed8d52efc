# SPDX-License-Identifier: Apache-2.0
"""The generator: a whole generation, prefill and sampling included, as one ONNX graph.

The step graph becomes the body of a `Loop`. Its first pass takes the prompts, every later one the token that the
pass before chose, so prompt and answer share one copy of the nodes. The saved file takes ids and returns ids from any
language that onnxruntime speaks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.passes import attach_functions, chain
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.state import BATCH, SLOTS, StateSpec

_INT, _FLOAT, _BOOL = ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL

# Per-row sampling inputs in the order of the op Sample, with the value that switches each off.
SAMPLING_INPUTS = {
    "temperature": _FLOAT,
    "top_k": _INT,
    "top_p": _FLOAT,
    "min_p": _FLOAT,
    "repetition_penalty": _FLOAT,
    "seed": _INT,
}
DEFAULTS = {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}


def build_generator(compiled: CompiledModel, chained: bool = False) -> ir.Model:
    """Wraps the step graph in a loop.

    Args:
        compiled: the step graph.
        chained: put nodes into chains, where the model was to be fused.

    Inputs: `input_ids` int64 `[B, L]` right-padded; all others are optional: `lengths` int64 `[B]`, `max_new_tokens`
    int64 `[B]` or `[1]`, `stop_token_ids` int64 `[E]`, and the sampling inputs, `[B]` or `[1]` each.
    Outputs: `output_ids` int64 `[B, T]`, padded with the first stop token or 0, and `output_lengths` int64 `[B]`.
    """
    model = _Generator(compiled).build()
    if chained and compiled.info.fuse:
        chain(model)
    return model


class _Generator:
    """Holds the pieces while the graph is put together."""

    def __init__(self, compiled: CompiledModel) -> None:
        self.info = compiled.info
        self.source = compiled.model
        self.graph = Graph("generator")
        self.body = compiled.model.graph.clone()

    def build(self) -> ir.Model:
        """Returns the finished model."""
        for name, value in list(self.body.initializers.items()):
            del self.body.initializers[name]
            if name.startswith("const_"):  # GraphBuilder numbers constants per graph; two graphs meet here
                value.name = f"step/{name}"
            self.graph.ir_graph.register_initializer(value)
        self._inputs()
        self._prepare()
        self._body()
        self._loop()
        model = ir.Model(
            self.graph.ir_graph,
            ir_version=IR_VERSION,
            producer_name=self.source.producer_name,
            producer_version=self.source.producer_version,
            metadata_props=dict(self.source.metadata_props),
            functions=list(self.source.functions.values()),
        )
        attach_functions(model)
        return model

    def _optional(self, name: str, dtype: ir.DataType, default: Any, dim: str) -> ir.Value:
        array = np.array([default] if np.isscalar(default) else default, dtype.numpy())
        value = self.graph.input(name, dtype, [dim])
        value.const_value = ir.tensor(array, name=name)
        self.graph.ir_graph.register_initializer(value)
        return value

    def _inputs(self) -> None:
        info = self.info
        self.ids = self.graph.input("input_ids", _INT, [BATCH, "prompt"])
        self.lengths = self._optional("lengths", _INT, -1, "length_rows")
        self.max_new = self._optional("max_new_tokens", _INT, info.max_length, "max_new_rows")
        self.stops = self._optional("stop_token_ids", _INT, list(info.stop_token_ids), "stops")
        self.sampling = [
            self._optional(name, dtype, DEFAULTS[name], f"{name}_rows") for name, dtype in SAMPLING_INPUTS.items()
        ]

    def _prepare(self) -> None:
        """Values that the loop starts from."""
        g = self.graph
        with g.nameScope("prepare"):
            rows, prompt = ops.shape(g, self.ids, 0, 1), ops.shape(g, self.ids, 1, 2)
            self.rows = rows
            given = ops.expand(g, self.lengths, rows)
            self.lengths = ops.where(g, ops.less(g, given, 0), prompt, given)
            room = ops.sub(g, self.info.max_length, self.lengths)
            self.limit = g.op("Min", ops.expand(g, self.max_new, rows), room)
            self.sampling = [ops.expand(g, value, rows) for value in self.sampling]
            most = ops.maximum(g, g.op("ReduceMax", self.limit, keepdims=0), 0)
            self.trips = most
            first = ops.slice(g, self.ids, [0], [1], [1], [1])
            real = ops.less(g, self._range(prompt), ops.unsqueeze(g, self.lengths, [1]))
            grown = ops.expand(g, first, ops.concat(g, [rows, ops.unsqueeze(g, most, [0])], 0))
            self.history = ops.concat(g, [ops.where(g, real, self.ids, first), grown], 1)
            self.slots = ops.add(g, ops.add(g, prompt, ops.unsqueeze(g, most, [0])), [1])
            self.done = ops.less(g, self.limit, 1)
            self.padding = self._padding()
            self.start = ops.expand(g, ops.constant(g, [0], np.int64), rows)

    def _range(self, size: ir.Value) -> ir.Value:
        g = self.graph
        return ops.unsqueeze(g, g.op("Range", 0, ops.squeeze(g, size, [0]), 1), [0])

    def _padding(self) -> ir.Value:
        """First stop token, or 0 where there is none."""
        g = self.graph
        return ops.slice(g, ops.concat(g, [self.stops, ops.constant(g, [0], np.int64)], 0), [0], [1], [0], [1])

    def _initial_state(self, state: StateSpec) -> ir.Value:
        g = self.graph
        known = {BATCH: self.rows, SLOTS: self.slots}
        dims = [known[d] if isinstance(d, str) else ops.constant(g, [d], np.int64) for d in state.shape]
        return ops.expand(g, ops.constant(g, np.array(state.initial, state.dtype)), ops.concat(g, dims, 0))

    def _body(self) -> None:
        """Turns the step graph into the loop's body: sampling after it, loop state around it."""
        body, g = self.body, self.graph
        ids, lengths, past_lengths, positions, *pasts = list(body.inputs)
        logits, *presents = list(body.outputs)
        iteration = ir.val("iteration", _INT, [])
        condition = ir.val("condition", _BOOL, [])
        history = ir.val("history", _INT, [BATCH, "history"])
        done = ir.val("done", _BOOL, [BATCH])
        count = ir.val("count", _INT, [BATCH])
        with g.inside(body), g.nameScope("sample"):
            step = ops.expand(g, ops.unsqueeze(g, iteration, [0]), self.rows)
            token = ops.sample_token(g, logits, history, *self.sampling, step)
            emitted = ops.where(g, done, self.padding, token)
            new_count = ops.add(g, count, ops.cast(g, g.op("Not", done), np.int64))
            column = ops.unsqueeze(g, emitted, [1])
            hits = ops.cast(g, ops.equal(g, column, ops.unsqueeze(g, self.stops, [0])), np.int64)
            stopped = ops.less(g, 0, g.op("ReduceSum", hits, [1], keepdims=0))
            finished = g.op("Or", done, g.op("Or", stopped, ops.less(g, self.limit, ops.add(g, new_count, 1))))
            slot = ops.unsqueeze(g, ops.add(g, self.lengths, iteration), [1])
            end = ops.sub(g, ops.shape(g, history, 1, 2), [1])
            written = g.op(
                "ScatterElements", history, g.op("Min", slot, end), self._kept(done, history, column), axis=1
            )
            running = ops.cast(g, g.op("Not", finished), np.int64)
            go_on = ops.cast(g, g.op("ReduceMax", running, keepdims=0), np.bool_)
            next_positions = ops.expand(g, ops.constant(g, [[0]], np.int64), ops.shape(g, column))
            outputs = [
                go_on,
                column,
                running,
                ops.add(g, past_lengths, lengths),
                next_positions,
                written,
                finished,
                new_count,
                *presents,
                emitted,
            ]
        body.outputs[:] = outputs
        body.inputs[:] = [
            iteration,
            condition,
            ids,
            lengths,
            past_lengths,
            positions,
            history,
            done,
            count,
            *pasts,
        ]

    def _kept(self, done: ir.Value, history: ir.Value, column: ir.Value) -> ir.Value:
        """What is written to the history: the token, or for a finished row one that it has already."""
        g = self.graph
        own = ops.slice(g, history, [0], [1], [1], [1])
        return ops.where(g, ops.unsqueeze(g, done, [1]), own, column)

    def _loop(self) -> None:
        g = self.graph
        with g.nameScope("prepare"):
            last = ops.unsqueeze(g, ops.sub(g, self.lengths, 1), [1])
            initial = [self.ids, self.lengths, self.start, last, self.history, self.done, self.start]
            initial += [self._initial_state(state) for state in self.info.states]
        outputs = ops.loop(g, self.trips, ops.constant(g, True), initial, self.body)
        # A loop without a pass gives ids of no known number of rows.
        shape = ops.concat(g, [self.rows, ops.shape(g, outputs[-1], 0, 1)], 0)
        ids, count = ops.reshape(g, ops.transpose(g, outputs[-1], [1, 0]), shape), outputs[6]
        for value, dims in ((ids, [BATCH, "generated"]), (count, [BATCH])):
            value.dtype, value.shape = _INT, ir.Shape(dims)
        g.output(ids, "output_ids")
        g.output(count, "output_lengths")
