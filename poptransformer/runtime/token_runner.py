# SPDX-License-Identifier: Apache-2.0
"""Steps that choose the next tokens themselves: one onnxruntime call per token, with all values bound before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from poptransformer.runtime.run_errors import raise_in_words
from poptransformer.runtime.step_runner import allocate
from poptransformer.state import COUNTERS, StateSpec

if TYPE_CHECKING:
    from poptransformer.generation import Rows


class TokenRunner:
    """One batch of rows in flight, from their prompts to their last tokens; see `generation.TokenRunner`.

    Between two tokens nothing is allocated, bound, counted or copied in Python. The array of the chosen tokens is the
    next step's `input_ids`. States are held as `StepRunner` holds them; for those that alternate between two buffers,
    the counters among them, two bindings take turns.

    Args:
        session: of the decoder graph.
        states: what one step of the model hands to the next.
        rows: the rows; read at each step.
        slots: capacity of the caches in tokens.
    """

    def __init__(self, session: ort.InferenceSession, states: tuple[StateSpec, ...], rows: Rows, slots: int) -> None:
        batch = len(rows.active)
        self._session = session
        self._rows = rows
        self._tokens = np.zeros(batch, np.int64)
        specs = (*states, *COUNTERS)
        pasts = [allocate(spec, batch, slots) for spec in specs]
        presents = [
            past if spec.in_place else allocate(spec, batch, slots) for spec, past in zip(specs, pasts, strict=True)
        ]
        # Bindings hold bare pointers: what they point to stays here.
        self._states = pasts, presents
        self._inputs: dict[str, np.ndarray] = {}
        self._binding = self._bind_states(specs, pasts, presents)
        self._other_binding = self._bind_states(specs, presents, pasts)
        self._bind(vars(rows.settings) | {"history": rows.history})

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Takes the prompts; see `TokenRunner`."""
        last = np.maximum(lengths - 1, 0)[:, None]
        self._bind({"input_ids": input_ids, "lengths": lengths, "logit_positions": last})
        tokens = self.decode()
        first = np.zeros_like(last)
        self._bind({"input_ids": tokens[:, None], "lengths": self._rows.active, "logit_positions": first})
        return tokens

    def decode(self) -> np.ndarray:
        """Takes the tokens of the step before; see `TokenRunner`."""
        binding = self._binding
        self._binding, self._other_binding = self._other_binding, binding
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise_in_words(error)
            raise
        return self._tokens

    def _bind(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Makes onnxruntime read inputs from the memory of these arrays."""
        self._inputs |= arrays
        for name, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            for binding in (self._binding, self._other_binding):
                binding.bind_ortvalue_input(name, value)

    def _bind_states(
        self, specs: tuple[StateSpec, ...], pasts: list[ort.OrtValue], presents: list[ort.OrtValue]
    ) -> ort.IOBinding:
        binding = self._session.io_binding()
        binding.bind_ortvalue_output("token", ort.OrtValue.ortvalue_from_numpy(self._tokens))
        for spec, past, present in zip(specs, pasts, presents, strict=True):
            binding.bind_ortvalue_input(spec.past, past)
            binding.bind_ortvalue_output(spec.present, present)
        return binding
