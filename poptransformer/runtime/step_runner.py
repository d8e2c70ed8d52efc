# SPDX-License-Identifier: Apache-2.0
"""Steps of a compiled model, with states that are bound to onnxruntime once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnxruntime as ort

from poptransformer.state import BATCH, SLOTS, StateSpec


class StepRunner:
    """One batch of rows in flight: its states, and how far each row has come.

    In-place states (caches) have one buffer that serves as past and present, so no step copies them; the others
    alternate between two. What is bound stays bound, and a step rewrites its small inputs where they lie: binding a
    deep model's caches anew would take longer than its sampling.

    Attributes:
        batch: rows.
        slots: capacity of the caches in tokens.
        past_lengths: int64 `[batch]`, tokens of each row so far.
    """

    _binding: ort.IOBinding
    _inputs: dict[str, np.ndarray]
    _pasts: list[ort.OrtValue]
    _presents: list[ort.OrtValue]

    def __init__(
        self, session: ort.InferenceSession, states: tuple[StateSpec, ...], batch: int, slots: int, vocab_size: int
    ) -> None:
        self.batch = batch
        self.slots = slots
        self.past_lengths = np.zeros(batch, np.int64)
        self._session = session
        self._states = states
        self._alternating = [index for index, state in enumerate(states) if not state.in_place]
        self._vocab_size = vocab_size
        self._allocate_states()

    def forward(self, input_ids: np.ndarray, lengths: np.ndarray, logit_positions: np.ndarray) -> ort.OrtValue:
        """Runs one step and advances the rows.

        Args:
            input_ids: int64 `[B, L]`, right-padded.
            lengths: int64 `[B]`, real tokens of each row.
            logit_positions: int64 `[B, M]`, which tokens get logits.

        Returns:
            Logits fp32 `[B, M, V]`, the caller's to keep.
        """
        self._feed("input_ids", input_ids)
        self._feed("lengths", lengths)
        self._feed("past_lengths", self.past_lengths)
        self._feed("logit_positions", logit_positions)
        logits = ort.OrtValue.ortvalue_from_shape_and_type([*logit_positions.shape, self._vocab_size], np.float32)
        self._binding.bind_ortvalue_output("logits", logits)
        self._session.run_with_iobinding(self._binding)
        self._pasts, self._presents = self._presents, self._pasts
        self._bind_states(self._alternating)
        self.past_lengths = self.past_lengths + lengths
        return logits

    def reorder(self, rows: np.ndarray) -> None:
        """Makes row b go on from where row `rows[b]` stands; for beam search.

        Args:
            rows: int64 `[B']`; B' may differ from the number of rows so far.
        """
        if np.array_equal(rows, np.arange(self.batch)):
            return
        used = int(self.past_lengths.max())
        old = self._pasts
        if len(rows) != self.batch:
            self.batch = len(rows)
            self._allocate_states()
        for state, source, target in zip(self._states, old, self._pasts, strict=True):
            cut = [slice(used if state.in_place and dim == SLOTS else None) for dim in state.shape]
            target.numpy()[*cut] = np.take(source.numpy()[*cut], rows, axis=state.shape.index(BATCH))
        self.past_lengths = self.past_lengths[rows]

    def _feed(self, name: str, array: np.ndarray) -> None:
        """Writes an input where onnxruntime looks for it; binds a new place where its shape has changed."""
        place = self._inputs.get(name)
        if place is None or place.shape != array.shape:
            place = self._inputs[name] = np.empty(array.shape, np.int64)
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(place))
        place[...] = array

    def _allocate_states(self) -> None:
        """Makes states for `batch` rows, in their initial values, and binds them."""
        self._pasts = [allocate(state, self.batch, self.slots) for state in self._states]
        self._presents = [
            past if state.in_place else allocate(state, self.batch, self.slots)
            for state, past in zip(self._states, self._pasts, strict=True)
        ]
        self._binding = self._session.io_binding()
        self._inputs = {}
        self._bind_states(range(len(self._states)))

    def _bind_states(self, indices: Iterable[int]) -> None:
        for index in indices:
            state = self._states[index]
            self._binding.bind_ortvalue_input(state.past, self._pasts[index])
            self._binding.bind_ortvalue_output(state.present, self._presents[index])


def allocate(state: StateSpec, batch: int, slots: int) -> ort.OrtValue:
    """Returns the state of `batch` rows before their first step."""
    return ort.OrtValue.ortvalue_from_numpy(initial_state(state, batch, slots))


def initial_state(state: StateSpec, batch: int, slots: int) -> np.ndarray:
    """The same as an array."""
    sizes = {BATCH: batch, SLOTS: slots}
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in state.shape]
    # np.zeros maps pages only when they are written: a long cache costs what is used of it.
    return np.zeros(shape, state.dtype) if state.initial == 0 else np.full(shape, state.initial, state.dtype)
