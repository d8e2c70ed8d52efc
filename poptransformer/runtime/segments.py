# SPDX-License-Identifier: Apache-2.0
"""One rank's segments of a graph that is cut into pipeline stages, and the order that it runs them in."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from poptransformer.parallel.communicator import Groups
from poptransformer.runtime.step_runner import initial_state
from poptransformer.runtime.timeline import Event
from poptransformer.state import BATCH, SLOTS, StateSpec


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """Where a rank stands.

    Attributes:
        rank: its number in the whole job.
        stage: its stage.
        stages: the stage of each segment of the graph.
        sessions: by number, the segments of this rank.
        groups: whom it talks to.
        timeline: gets an event for each piece of work.
    """

    rank: int
    stage: int
    stages: Sequence[int]
    sessions: Mapping[int, ort.InferenceSession]
    groups: Groups
    timeline: deque[Event]

    def schedule(self, micro_batches: int) -> Iterator[tuple[int, int]]:
        """Yields segment and micro-batch of this rank's work, in order.

        In wave t segment k has micro-batch t - k. The order is the same on all replicas of a stage, so their
        collectives meet.
        """
        for wave in range(micro_batches + len(self.stages) - 1):
            for segment in range(len(self.stages)):
                if segment in self.sessions and 0 <= wave - segment < micro_batches:
                    yield segment, wave - segment

    def note(self, segment: int, micro_batch: int, start: float) -> None:
        """Enters a piece of work that has just ended: from its inputs, for which it may have waited, to its outputs."""
        end = time.perf_counter()
        if self.groups.stages is not None:
            received, sent = self.groups.stages.last_transfers
            # Messages are the first that a segment waits for, and the last that it makes.
            start, end = max(start, received), sent if sent > start else end
        self.timeline.append(Event(self.rank, self.stage, segment, micro_batch, start, end))


class StageStates:
    """The states of a rank's layers for a batch of rows, cut into micro-batches."""

    def __init__(self, plan: StagePlan, states: Sequence[StateSpec], batch: int, slots: int, micro_batch: int) -> None:
        self.slots = slots
        self.micro_batch = micro_batch
        self._plan = plan
        names = {value.name for session in plan.sessions.values() for value in session.get_inputs()}
        self._states = [state for state in states if state.past in names]
        self.allocate(batch)

    def allocate(self, batch: int) -> None:
        """Makes states for `batch` rows in their initial values."""
        self.batch = batch
        self._pasts = [initial_state(state, batch, self.slots) for state in self._states]
        self._presents = [
            past if state.in_place else np.empty_like(past)
            for state, past in zip(self._states, self._pasts, strict=True)
        ]
        size = self.micro_batch
        self.parts = [slice(first, min(batch, first + size)) for first in range(0, batch, size)]
        self._bound = {
            (segment, number): BoundSegment(session)
            for segment, session in self._plan.sessions.items()
            for number in range(len(self.parts))
        }

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Runs one step of all rows: this rank's part of it.

        Args:
            inputs: of the step, one row for each row of the batch.
            outputs: arrays that results are written to, by name; filled on the rank that computes them.
        """
        plan = self._plan
        for segment, number in plan.schedule(len(self.parts)):
            rows = self.parts[number]
            bound = self._bound[segment, number]
            start = time.perf_counter()
            for name, array in inputs.items():
                bound.feed(name, array[rows])
            for state, past, present in zip(self._states, self._pasts, self._presents, strict=True):
                if not (state.in_place and bound.has_run):
                    bound.bind_state(state, past, present, rows)
            for name, array in outputs.items():
                bound.bind_output(name, array[rows])
            bound.run()
            plan.note(segment, number, start)
        self._pasts, self._presents = self._presents, self._pasts

    def reorder(self, rows: np.ndarray, used: int) -> None:
        """Makes row b go on from where row `rows[b]` stands; `used` slots of caches hold something."""
        old = self._pasts
        if len(rows) != self.batch:
            self.allocate(len(rows))
        for state, source, target in zip(self._states, old, self._pasts, strict=True):
            cut = tuple(slice(used if state.in_place and dim == SLOTS else None) for dim in state.shape)
            target[cut] = np.take(source[cut], rows, axis=state.shape.index(BATCH))


class BoundSegment:
    """A session with what it reads and writes; what is bound stays bound where it lies in the same place.

    Attributes:
        has_run: whether it has run before.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self.has_run = False
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {value.name for value in session.get_inputs()}
        self._outputs = {value.name for value in session.get_outputs()}
        self._fed: dict[str, np.ndarray] = {}
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name in self._outputs:
            if name.startswith("sent."):
                self._binding.bind_output(name)

    def feed(self, name: str, array: np.ndarray) -> None:
        """Writes an input where onnxruntime looks for it."""
        if name not in self._inputs:
            return
        place = self._fed.get(name)
        if place is None or place.shape != array.shape:
            place = self._fed[name] = np.empty(array.shape, array.dtype)
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(place))
        place[...] = array

    def bind_state(self, state: StateSpec, past: np.ndarray, present: np.ndarray, rows: slice) -> None:
        """Binds one state's rows, past and present."""
        if state.past in self._inputs and self._has_moved(state.past, past[rows]):
            self._binding.bind_ortvalue_input(state.past, ort.OrtValue.ortvalue_from_numpy(past[rows]))
        self.bind_output(state.present, present[rows])

    def bind_output(self, name: str, array: np.ndarray) -> None:
        """Makes onnxruntime write an output into an array."""
        if name in self._outputs and self._has_moved(name, array):
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def run(self) -> None:
        """Runs the segment."""
        self._session.run_with_iobinding(self._binding)
        self.has_run = True

    def _has_moved(self, name: str, array: np.ndarray) -> bool:
        place = array.ctypes.data, array.shape
        has_moved = self._places.get(name) != place
        self._places[name] = place
        return has_moved
