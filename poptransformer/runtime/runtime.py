# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled model: steps with caches updated in place, sampling, and whole generations in one call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from poptransformer import ops
from poptransformer.generation import SamplingParams, arrays, check_prompts, right_padded, row_limits
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.passes import attach_functions
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.generator import SAMPLING_INPUTS, build_generator
from poptransformer.runtime.ort_session import SessionSettings, WeightStore, make_session
from poptransformer.step import BATCH, SLOTS, StateSpec


class StepRunner:
    """One batch of rows in flight: its states, and how far each row has come.

    States are bound to onnxruntime once. In-place ones (caches) have one buffer that serves as past and present, so
    no step copies them; the others alternate between two.

    Attributes:
        batch: rows.
        slots: capacity of the caches in tokens.
        past_lengths: int64 `[batch]`, tokens of each row so far.
    """

    def __init__(self, session: ort.InferenceSession, states: tuple[StateSpec, ...], batch: int, slots: int) -> None:
        self.batch = batch
        self.slots = slots
        self.past_lengths = np.zeros(batch, np.int64)
        self._session = session
        self._states = states
        self._pasts, self._presents = self._buffers()

    def forward(self, input_ids: np.ndarray, lengths: np.ndarray, logit_positions: np.ndarray) -> ort.OrtValue:
        """Runs one step and advances the rows.

        Args:
            input_ids: int64 `[B, L]`, right-padded.
            lengths: int64 `[B]`, real tokens of each row.
            logit_positions: int64 `[B, M]`, which tokens get logits.

        Returns:
            Logits fp32 `[B, M, V]`.
        """
        binding = self._session.io_binding()
        feeds = {
            "input_ids": input_ids,
            "lengths": lengths,
            "past_lengths": self.past_lengths,
            "logit_positions": logit_positions,
        }
        bound = _bind(binding, {name: np.ascontiguousarray(array, np.int64) for name, array in feeds.items()})
        for state, past, present in zip(self._states, self._pasts, self._presents, strict=True):
            binding.bind_ortvalue_input(state.past, past)
            binding.bind_ortvalue_output(state.present, present)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        del bound
        self._pasts, self._presents = self._presents, self._pasts
        self.past_lengths = self.past_lengths + lengths
        return binding.get_outputs()[-1]

    def reorder(self, rows: np.ndarray) -> None:
        """Makes row b go on from where row `rows[b]` stands; for beam search.

        Args:
            rows: int64 `[B']`; B' may differ from the number of rows so far.
        """
        if np.array_equal(rows, np.arange(self.batch)):
            return
        used = int(self.past_lengths.max())
        old, self.batch = self._pasts, len(rows)
        if any(value.shape()[0] != self.batch for value in old):
            self._pasts, self._presents = self._buffers()
        for state, source, target in zip(self._states, old, self._pasts, strict=True):
            part = (slice(None), slice(None), slice(used)) if SLOTS in state.shape else ...
            target.numpy()[part] = source.numpy()[part][rows]
        self.past_lengths = self.past_lengths[rows]

    def _buffers(self) -> tuple[list[ort.OrtValue], list[ort.OrtValue]]:
        pasts = [_allocate(state, self.batch, self.slots) for state in self._states]
        presents = [
            past if state.in_place else _allocate(state, self.batch, self.slots)
            for state, past in zip(self._states, pasts, strict=True)
        ]
        return pasts, presents


def _bind(binding: ort.IOBinding, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Binds arrays as inputs without copying; they must outlive the run, so the caller keeps what this returns."""
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    return list(arrays.values())


def _allocate(state: StateSpec, batch: int, slots: int) -> ort.OrtValue:
    sizes = {BATCH: batch, SLOTS: slots}
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in state.shape]
    # np.zeros maps pages only when they are written: a long cache costs what is used of it.
    array = np.zeros(shape, state.dtype) if state.initial == 0 else np.full(shape, state.initial, state.dtype)
    return ort.OrtValue.ortvalue_from_numpy(array)


class Runtime:
    """A compiled model in onnxruntime. Sessions are made when they are first used and share their weights."""

    def __init__(self, compiled: CompiledModel, settings: SessionSettings | None = None) -> None:
        self.compiled = compiled
        self.settings = settings or SessionSettings()
        self._weights = WeightStore()

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.compiled.info.max_length

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.compiled.info.vocab_size

    @functools.cached_property
    def step_session(self) -> ort.InferenceSession:
        """The step graph."""
        return make_session(self.compiled.model, self.settings, self._weights)

    @functools.cached_property
    def generator_session(self) -> ort.InferenceSession:
        """The whole generation as one graph."""
        return make_session(build_generator(self.compiled), self.settings, self._weights)

    @functools.cached_property
    def sampler_session(self) -> ort.InferenceSession:
        """Logits to tokens."""
        return make_session(build_sampler(), dataclasses.replace(self.settings, profile_prefix=None))

    def end_profiling(self) -> list[str]:
        """Ends the profile of every session that has run; returns the files that onnxruntime wrote."""
        made = (name for name in ("step_session", "generator_session") if name in self.__dict__)
        return [getattr(self, name).end_profiling() for name in made]

    def start(self, batch: int, slots: int) -> StepRunner:
        """Allocates the states for a batch of rows."""
        return StepRunner(self.step_session, self.compiled.info.states, batch, slots)

    def generate(
        self, rows: Sequence[Sequence[int]], params: Sequence[SamplingParams], stop_token_ids: frozenset[int]
    ) -> list[list[int]]:
        """Generates the answers of a batch in one onnxruntime call.

        Args:
            rows: ids of each prompt.
            params: settings of each row; no beams and no stop strings. `ignore_eos` must be the same for all.
            stop_token_ids: ids that end a row.
        """
        check_prompts(self, rows, params)
        ids, lengths, _ = right_padded(rows)
        settings = arrays(params)
        feeds = {name: getattr(settings, name) for name in SAMPLING_INPUTS}
        feeds |= {
            "input_ids": ids,
            "lengths": lengths,
            "max_new_tokens": np.array(row_limits(self, rows, params), np.int64),
            "stop_token_ids": np.array([] if params[0].ignore_eos else sorted(stop_token_ids), np.int64),
        }
        output_ids, counts = self.generator_session.run(["output_ids", "output_lengths"], feeds)
        return [answer[:count].tolist() for answer, count in zip(output_ids, counts, strict=True)]

    def sample(
        self,
        logits: Any,
        history: np.ndarray,
        settings: Any,
        step: np.ndarray,
        *,
        want_probabilities: bool = False,
    ) -> Any:
        """Chooses the next token of every row.

        Args:
            logits: fp32 `[B, V]` or `[B, 1, V]`, an OrtValue or an array.
            history: int64 `[B, T]`, tokens of each row so far, filled up with any of them.
            settings: arrays `[B]` named like `SAMPLING_INPUTS`.
            step: int64 `[B]`, tokens that each row has generated.
            want_probabilities: return the distributions too.

        Returns:
            Tokens int64 `[B]`; with `want_probabilities` also fp32 `[B, V]`.
        """
        binding = self.sampler_session.io_binding()
        arrays = {"history": history, "step": step} | {name: getattr(settings, name) for name in SAMPLING_INPUTS}
        if isinstance(logits, np.ndarray):
            arrays["logits"] = logits.astype(np.float32, copy=False)
        else:
            binding.bind_ortvalue_input("logits", logits)
        bound = _bind(binding, {name: np.ascontiguousarray(array) for name, array in arrays.items()})
        binding.bind_output("token", "cpu")
        if want_probabilities:
            binding.bind_output("probabilities", "cpu")
        self.sampler_session.run_with_iobinding(binding)
        del bound
        outputs = [value.numpy() for value in binding.get_outputs()]
        return (outputs[0], outputs[1]) if want_probabilities else outputs[0]


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
