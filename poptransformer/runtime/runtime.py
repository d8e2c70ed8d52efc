# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled model: steps with caches updated in place, sampling, and whole generations in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.compiled_facts import CompiledFacts
from poptransformer.runtime.ort_session import SessionSettings, WeightStore, make_session, open_session
from poptransformer.runtime.run_errors import raise_in_words
from poptransformer.runtime.step_runner import StepRunner
from poptransformer.runtime.token_runner import TokenRunner

if TYPE_CHECKING:
    import onnx_ir as ir

    from poptransformer.generation import Rows, SamplingArrays, SamplingParams


class Runtime(CompiledFacts):
    """A compiled model in onnxruntime. Sessions are made when they are first used and share their weights."""

    def __init__(self, compiled: CompiledModel, settings: SessionSettings | None = None) -> None:
        self.compiled = compiled
        self.settings = settings or SessionSettings()
        self._weights = WeightStore()
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()  # held while one is made: another thread may want the same
        self._graph_read = threading.Event()

    @functools.cached_property
    def step_session(self) -> ort.InferenceSession:
        """The step graph."""
        return self._session("model.onnx", lambda: self.compiled.model, self.settings)

    @functools.cached_property
    def decoder_session(self) -> ort.InferenceSession:
        """The step graph that chooses the next tokens itself."""

        def build() -> ir.Model:
            from poptransformer.runtime.decoder import build_decoder

            return build_decoder(self.compiled, chained=self._is_chained)

        return self._session("decoder.onnx", build, self.settings)

    @functools.cached_property
    def generator_session(self) -> ort.InferenceSession:
        """The whole generation as one graph."""

        def build() -> ir.Model:
            from poptransformer.runtime.generator import build_generator

            return build_generator(self.compiled, chained=self._is_chained)

        return self._session("generator.onnx", build, self.settings)

    @functools.cached_property
    def sampler_session(self) -> ort.InferenceSession:
        """Logits to tokens."""

        def build() -> ir.Model:
            from poptransformer.runtime.sampler import build_sampler

            return build_sampler()

        return self._session("sampler.onnx", build, dataclasses.replace(self.settings, profile_prefix=None))

    @property
    def _is_chained(self) -> bool:
        """Whether sessions have chains, as saved graphs do: a profile counts nodes, for it they stay apart."""
        return self.settings.profile_prefix is None

    def _session(self, file: str, build: Callable[[], ir.Model], settings: SessionSettings) -> ort.InferenceSession:
        """Opens a saved model's file, or makes a session of what `build` returns; once."""
        with self._lock:
            if file not in self._sessions:
                self._sessions[file] = self._new_session(file, build, settings)
            return self._sessions[file]

    def _new_session(self, file: str, build: Callable[[], ir.Model], settings: SessionSettings) -> ort.InferenceSession:
        if self.compiled.folder is not None and self._is_chained:
            weights = self.compiled.weights_folder if self.compiled.info.num_replicas > 1 else None
            return open_session(self.compiled.folder / file, settings, weights, self._graph_read.set)
        with self.compiled.lock:
            return make_session(build(), settings, self._weights)

    def make_ready(self, beams: bool) -> None:
        """Makes the session that generation needs, so that its first token does not wait for it.

        Args:
            beams: for a beam search, which chooses from logits; otherwise for steps that choose themselves.
        """
        _ = self.step_session if beams else self.decoder_session

    def make_ready_meanwhile(self, beams: bool) -> threading.Event:
        """Begins `make_ready` in a thread of its own and returns at once.

        onnxruntime opens a saved model without holding Python's lock, so that the tokenizer can load at the same time.
        What goes wrong shows where the session is first used.

        Args:
            beams: as for `make_ready`.

        Returns:
            What is set once the graph has been read. The thread needs Python's lock until then, and no more until the
            session is ready: whoever is going to hold the lock for long, as a tokenizer does that loads, waits for it.
        """

        def open_it() -> None:
            with contextlib.suppress(Exception):  # whoever needs the session tries again, and gets the error
                self.make_ready(beams)
            self._graph_read.set()

        threading.Thread(target=open_it, name="poptransformer-session").start()
        return self._graph_read

    def end_profiling(self) -> list[str]:
        """Ends the profile of every session that has run; returns the files that onnxruntime wrote.

        onnxruntime profiles a session once: a session whose profile has ended before writes none.
        """
        made = (name for name in ("step_session", "decoder_session", "generator_session") if name in self.__dict__)
        return [path for name in made if (path := getattr(self, name).end_profiling())]

    def start(self, batch: int, slots: int) -> StepRunner:
        """Allocates the states for a batch of rows."""
        return StepRunner(self.step_session, self.compiled.info.states, batch, slots, self.vocab_size)

    def start_tokens(self, rows: Rows, slots: int) -> TokenRunner:
        """The same for rows that are sampled within each step."""
        return TokenRunner(self.decoder_session, self.compiled.info.states, rows, slots)

    def generate(
        self, rows: Sequence[Sequence[int]], params: Sequence[SamplingParams], stop_token_ids: frozenset[int]
    ) -> list[list[int]]:
        """Generates the answers of a batch in one onnxruntime call.

        Args:
            rows: ids of each prompt.
            params: settings of each row; no beams and no stop strings. `ignore_eos` must be the same for all.
            stop_token_ids: ids that end a row.
        """
        # Imported here: while a stream imports it, its session opens already.
        from poptransformer.generation import arrays, check_prompts, right_padded, row_limits

        check_prompts(self, rows, params)
        ids, lengths, _ = right_padded(rows)
        feeds = vars(arrays(params)) | {
            "input_ids": ids,
            "lengths": lengths,
            "max_new_tokens": np.array(row_limits(self, rows, params), np.int64),
            "stop_token_ids": np.array([] if params[0].ignore_eos else sorted(stop_token_ids), np.int64),
        }
        output_ids, counts = _run(self.generator_session, ["output_ids", "output_lengths"], feeds)
        return [answer[:count].tolist() for answer, count in zip(output_ids, counts, strict=True)]

    def sample(
        self,
        logits: Any,
        history: np.ndarray,
        settings: SamplingArrays,
        step: np.ndarray,
        *,
        want_probabilities: bool = False,
    ) -> Any:
        """Chooses the next token of every row.

        Args:
            logits: fp32 `[B, V]` or `[B, 1, V]`, an OrtValue or an array.
            history: int64 `[B, T]`, tokens of each row so far, filled up with any of them.
            settings: how each row is sampled.
            step: int64 `[B]`, tokens that each row has generated.
            want_probabilities: return the distributions too.

        Returns:
            Tokens int64 `[B]`; with `want_probabilities` also fp32 `[B, V]`.
        """
        feeds = vars(settings) | {"history": history, "step": step}
        # For inputs as small as these, one `run` costs half of what binding them one by one does.
        values = logits if isinstance(logits, np.ndarray) else logits.numpy()
        feeds["logits"] = values.astype(np.float32, copy=False).reshape(len(step), 1, -1)
        outputs = _run(self.sampler_session, ["token", "probabilities"] if want_probabilities else ["token"], feeds)
        return (outputs[0], outputs[1]) if want_probabilities else outputs[0]


def _run(session: ort.InferenceSession, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(outputs, feeds)
    except Exception as error:
        raise_in_words(error)
        raise
