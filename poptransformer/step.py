# SPDX-License-Identifier: Apache-2.0
"""One step of generation as a graph sees it: its inputs, and the state that it carries from step to step.

The same graph serves prefill (all tokens of the prompts) and decode (one token per row). Rows are right-padded: token
i of row b stands at position `past_lengths[b] + i`, and only the first `lengths[b]` tokens of a row are real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer.errors import GraphError
from poptransformer.graph import Graph
from poptransformer.state import BATCH, CHOSEN, SLOTS, TOKENS, StateSpec


class State:
    """A state during graph building: read `past`, then `update` it once."""

    def __init__(self, step: Step, spec: StateSpec, past: ir.Value) -> None:
        self._step = step
        self.spec = spec
        self.past = past

    def update(self, value: ir.Value) -> None:
        """Sets what the next step will find as `past`."""
        self._step.presents[self.spec.present] = value


@dataclasses.dataclass(frozen=True)
class KVCache:
    """Key and value states of one attention layer, `[B, K, S, H]` each."""

    key: State
    value: State


class Step:
    """Inputs and states of the step graph; layers declare the states they need as they are called.

    Attributes:
        graph: the step graph.
        input_ids: int64 `[B, L]`.
        lengths: int64 `[B]`, real tokens of each row in this step.
        past_lengths: int64 `[B]`, tokens of each row before this step.
        logit_positions: int64 `[B, M]`, which of the L tokens get logits.
        total_lengths: int64 `[B]`, `past_lengths + lengths`.
        position_ids: int64 `[B, L]`, counted from 0 in each row.
        states: declared states, in order.
        has_chosen: whether `chosen` has been called; a model that gives every token logits gets it afterwards.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        integer = ir.DataType.INT64
        self.input_ids = graph.input("input_ids", integer, [BATCH, TOKENS])
        self.lengths = graph.input("lengths", integer, [BATCH])
        self.past_lengths = graph.input("past_lengths", integer, [BATCH])
        self.logit_positions = graph.input("logit_positions", integer, [BATCH, CHOSEN])
        self.states: list[StateSpec] = []
        self.presents: dict[str, ir.Value] = {}
        self.has_chosen = False
        self._shared: dict[str, Any] = {}
        with graph.nameScope("step"):
            self.total_lengths = graph.op("Add", self.past_lengths, self.lengths)
            count = graph.op("Squeeze", graph.op("Shape", self.input_ids, start=1, end=2), [0])
            offsets = graph.op("Unsqueeze", graph.op("Range", 0, count, 1), [0])
            self.position_ids = graph.op("Add", graph.op("Unsqueeze", self.past_lengths, [1]), offsets)
            self.position_ids.shape = ir.Shape([BATCH, TOKENS])  # inference cannot know how long the range is

    def shared(self, graph: Graph, name: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` built the first time it was asked for under `name`.

        For values that every layer needs alike, such as rotary angles; made outside of the caller's scope.
        """
        if name not in self._shared:
            with graph.rootScope():
                self._shared[name] = make()
        return self._shared[name]

    def state(self, spec: StateSpec) -> State:
        """Declares a state and returns it with its `past` value.

        Raises:
            GraphError: a state of that name was declared before.
        """
        if any(known.past == spec.past for known in self.states):
            raise GraphError(f"The state {spec.past} is declared twice; give each attention layer its own layer_index.")
        past = self.graph.input(spec.past, ir.DataType.from_numpy(np.dtype(spec.dtype)), list(spec.shape))
        self.states.append(spec)
        return State(self, spec, past)

    def kv_cache(self, layer_index: int, num_kv_heads: int, head_dim: int) -> KVCache:
        """Declares the cache of one attention layer under the ONNX naming convention."""

        def declare(part: str) -> State:
            shape = (BATCH, num_kv_heads, SLOTS, head_dim)
            names = f"past_key_values.{layer_index}.{part}", f"present.{layer_index}.{part}"
            return self.state(StateSpec(*names, "float32", shape, in_place=True))

        return KVCache(declare("key"), declare("value"))

    def layer_state(self, layer_index: int, part: str, width: int, initial: float = 0.0) -> State:
        """Declares a vector that one layer carries for each row, float32 `[B, width]`, whatever the row's length.

        Args:
            layer_index: number of the layer.
            part: what the layer calls it; each of its states has another name.
            width: columns.
            initial: value before the first step.
        """
        names = f"past_state.{layer_index}.{part}", f"present_state.{layer_index}.{part}"
        return self.state(StateSpec(*names, "float32", (BATCH, width), initial))

    def chosen(self, hidden: ir.Value) -> ir.Value:
        """Picks the tokens that get logits: `[B, L, D]` to `[B, M, D]`."""
        self.has_chosen = True
        with self.graph.nameScope("step"):
            indices = self.graph.op("Unsqueeze", self.logit_positions, [2])
            return self.graph.op("GatherND", hidden, indices, batch_dims=1)

    def finish(self, logits: ir.Value) -> Sequence[StateSpec]:
        """Makes logits and present states the graph's outputs; returns the states.

        Raises:
            GraphError: a state was declared, but never updated.
        """
        self.graph.output(logits, "logits")
        for spec in self.states:
            if spec.present not in self.presents:
                raise GraphError(
                    f"The state {spec.past} is never updated; call state.update(value) in the layer that declares it."
                )
            self.graph.output(self.presents[spec.present], spec.present)
        return self.states
