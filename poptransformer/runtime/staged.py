# SPDX-License-Identifier: Apache-2.0
"""One rank of a model that is cut into pipeline stages: it runs its own stage's segments, and holds their weights only.

Every rank calls the same methods in the same order. What the last segment makes is given to all of them.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from poptransformer.generation import Rows, SamplingParams, generate_ids
from poptransformer.parallel.communicator import Groups
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.ort_session import SessionSettings, make_session
from poptransformer.runtime.runtime import Runtime
from poptransformer.runtime.segments import StagePlan, StageStates
from poptransformer.runtime.timeline import Event
from poptransformer.state import COUNTERS

if TYPE_CHECKING:
    import onnx_ir as ir

_TIMELINE = 1 << 16  # events that are kept


class StagedRuntime(Runtime):
    """See `Runtime` for what its methods do.

    Attributes:
        timeline: the last pieces of work of this rank.

    Args:
        compiled: the replica.
        settings: with the rank's groups.
        stage: the rank's stage.
        micro_batch: rows that go through the stages together, so that stages overlap; None for all of a batch.
    """

    def __init__(
        self, compiled: CompiledModel, settings: SessionSettings, stage: int, micro_batch: int | None = None
    ) -> None:
        super().__init__(compiled, settings)
        self.stage = stage
        self.micro_batch = micro_batch
        self.timeline: deque[Event] = deque(maxlen=_TIMELINE)

    @functools.cached_property
    def step_plan(self) -> StagePlan:
        """The step graph's segments of this rank."""
        return self._plan(self.compiled.model)

    @functools.cached_property
    def decoder_plan(self) -> StagePlan:
        """The same with the choice of the next token."""
        from poptransformer.runtime.decoder import build_decoder

        with self.compiled.lock:
            model = build_decoder(self.compiled)
        # Each rank counts for itself.
        counted = {counter.present for counter in COUNTERS}
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name not in counted]
        return self._plan(model)

    @property
    def groups(self) -> Groups:
        """Whom this rank talks to."""
        return self.settings.groups or Groups()

    def _plan(self, model: ir.Model) -> StagePlan:
        from poptransformer.passes import split_stages

        states = {state.past: state.present for state in self.compiled.info.states}
        with self.compiled.lock:
            segments = split_stages(model, states)
            sessions = {
                number: make_session(segment.model, self.settings, self._weights)
                for number, segment in enumerate(segments)
                if segment.stage == self.stage
            }
        stages = [segment.stage for segment in segments]
        replica = 0 if self.groups.replicas is None else self.groups.replicas.rank
        replicas = self.compiled.info.num_replicas
        return StagePlan(self.stage * replicas + replica, self.stage, stages, sessions, self.groups, self.timeline)

    def make_ready(self, beams: bool) -> None:
        """Makes the sessions that generation needs."""
        _ = self.step_plan if beams else self.decoder_plan

    def end_profiling(self) -> list[str]:
        """Ends the profiles of all segments; returns the files."""
        plans = (getattr(self, name) for name in ("step_plan", "decoder_plan") if name in self.__dict__)
        sessions = (session for plan in plans for session in plan.sessions.values())
        return [path for session in sessions if (path := session.end_profiling())]

    def start(self, batch: int, slots: int) -> StagedSteps:  # type: ignore[override]
        """Allocates the states of this stage for a batch of rows."""
        return StagedSteps(self, batch, slots)

    def start_tokens(self, rows: Rows, slots: int) -> StagedTokens:  # type: ignore[override]
        """The same for rows that are sampled within each step."""
        return StagedTokens(self, rows, slots)

    def generate(
        self, rows: Sequence[Sequence[int]], params: Sequence[SamplingParams], stop_token_ids: frozenset[int]
    ) -> list[list[int]]:
        """Generates step by step: stages cannot share one loop."""
        return generate_ids(self, rows, params, stop_token_ids)

    def states(self, plan: StagePlan, batch: int, slots: int) -> StageStates:
        """Allocates this rank's states."""
        return StageStates(plan, self.compiled.info.states, batch, slots, self.micro_batch or batch)

    def share(self, array: np.ndarray, plan: StagePlan, what: str) -> None:
        """Gives all stages what the last segment's has in `array`."""
        if self.groups.stages is not None:
            self.groups.stages.broadcast(array, plan.stages[-1], what)


class StagedSteps:
    """One batch of rows in flight; see `StepRunner`."""

    def __init__(self, runtime: StagedRuntime, batch: int, slots: int) -> None:
        self._runtime = runtime
        self._states = runtime.states(runtime.step_plan, batch, slots)
        self.past_lengths = np.zeros(batch, np.int64)

    def forward(self, input_ids: np.ndarray, lengths: np.ndarray, logit_positions: np.ndarray) -> ort.OrtValue:
        """Runs one step; see `StepRunner`."""
        runtime = self._runtime
        shape = [*logit_positions.shape, runtime.vocab_size]
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
        logits = value.numpy()
        inputs = {"input_ids": input_ids, "lengths": lengths, "logit_positions": logit_positions}
        self._states.run({**inputs, "past_lengths": self.past_lengths}, {"logits": logits})
        self.past_lengths = self.past_lengths + lengths
        runtime.share(logits, runtime.step_plan, "logits")
        return value

    def reorder(self, rows: np.ndarray) -> None:
        """Makes row b go on from where row `rows[b]` stands."""
        if np.array_equal(rows, np.arange(len(self.past_lengths))):
            return
        self._states.reorder(rows, int(self.past_lengths.max()))
        self.past_lengths = self.past_lengths[rows]


class StagedTokens:
    """One batch of rows in flight that are sampled in the last segment; see `TokenRunner`."""

    def __init__(self, runtime: StagedRuntime, rows: Rows, slots: int) -> None:
        self._runtime = runtime
        self._rows = rows
        batch = len(rows.active)
        self._states = runtime.states(runtime.decoder_plan, batch, slots)
        self._past_lengths = np.zeros(batch, np.int64)
        self._step = np.zeros(batch, np.int64)
        self._tokens = np.zeros(batch, np.int64)

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Takes the prompts; see `TokenRunner`."""
        return self._run(input_ids, lengths, np.maximum(lengths - 1, 0)[:, None])

    def decode(self) -> np.ndarray:
        """Takes the tokens of the step before; see `TokenRunner`."""
        return self._run(self._tokens[:, None], self._rows.active, np.zeros((len(self._step), 1), np.int64))

    def _run(self, input_ids: np.ndarray, lengths: np.ndarray, positions: np.ndarray) -> np.ndarray:
        inputs: Mapping[str, Any] = {
            "input_ids": input_ids,
            "lengths": lengths,
            "logit_positions": positions,
            "past_lengths": self._past_lengths,
            "history": self._rows.history,
            "step": self._step,
            **vars(self._rows.settings),
        }
        tokens = np.empty(len(self._step), np.int64)
        self._states.run(inputs, {"token": tokens})
        self._runtime.share(tokens, self._runtime.decoder_plan, "the tokens")
        self._past_lengths = self._past_lengths + lengths
        self._step += 1
        self._tokens = tokens
        return tokens
