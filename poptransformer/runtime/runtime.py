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
from poptransformer.runtime.step_runner import StepRunner
from poptransformer.step import BATCH


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
        with self.compiled.lock:
            return make_session(self.compiled.model, self.settings, self._weights)

    @functools.cached_property
    def generator_session(self) -> ort.InferenceSession:
        """The whole generation as one graph."""
        with self.compiled.lock:
            return make_session(build_generator(self.compiled), self.settings, self._weights)

    @functools.cached_property
    def sampler_session(self) -> ort.InferenceSession:
        """Logits to tokens."""
        return make_session(build_sampler(), dataclasses.replace(self.settings, profile_prefix=None))

    def make_ready(self, one_call: bool) -> None:
        """Makes the sessions that generation needs, so that its first token does not wait for them.

        Args:
            one_call: for `generate`; otherwise for steps and `sample`.
        """
        for name in ("generator_session",) if one_call else ("step_session", "sampler_session"):
            getattr(self, name)

    def end_profiling(self) -> list[str]:
        """Ends the profile of every session that has run; returns the files that onnxruntime wrote.

        onnxruntime profiles a session once: a session whose profile has ended before writes none.
        """
        made = (name for name in ("step_session", "generator_session") if name in self.__dict__)
        return [path for name in made if (path := getattr(self, name).end_profiling())]

    def start(self, batch: int, slots: int) -> StepRunner:
        """Allocates the states for a batch of rows."""
        return StepRunner(self.step_session, self.compiled.info.states, batch, slots, self.vocab_size)

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
        feeds = {name: getattr(settings, name) for name in SAMPLING_INPUTS} | {"history": history, "step": step}
        # For inputs as small as these, one `run` costs half of what binding them one by one does.
        values = logits if isinstance(logits, np.ndarray) else logits.numpy()
        feeds["logits"] = values.astype(np.float32, copy=False).reshape(len(step), 1, -1)
        outputs = self.sampler_session.run(["token", "probabilities"] if want_probabilities else ["token"], feeds)
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
