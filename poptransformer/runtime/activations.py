# SPDX-License-Identifier: Apache-2.0
"""What a calibration text shows about the inputs of products: the float graph is run on it, and looked into."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from poptransformer import passes
from poptransformer.errors import ConfigError
from poptransformer.graph import IR_VERSION
from poptransformer.quantization import ActivationStats, collect
from poptransformer.runtime.ort_session import SessionSettings, WeightStore, make_session
from poptransformer.state import BATCH, SLOTS, StateSpec

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel
    from poptransformer.recipe import QuantizationConfig

WINDOW = 512
LEAST_TOKENS = 32
# Statistics that are held at a time; more of them means another run over the text.
GROUP_BYTES = 1 << 29


class Activations(Mapping[str, ActivationStats]):
    """Statistics of the named values, gathered group by group when the first of a group is asked for.

    Only the last group is held, so ask in the order of the names.

    Args:
        model: the float graph; what later passes do to it changes nothing here.
        names: the values, in the graph's order.
        states: the graph's states.
        windows: tokens of the text, int64 `[1, L]` each.
        hessians: gather the products of columns too.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        states: Sequence[StateSpec],
        windows: Sequence[np.ndarray],
        hessians: bool,
    ) -> None:
        self._model = ir.Model(model.graph.clone(), ir_version=IR_VERSION)
        passes.store_weights(self._model, "fp32")
        passes.attach_functions(self._model)
        produced = (value for node in self._model.graph for value in node.outputs)
        self._values = {str(value.name): value for value in produced}
        self._names = [name for name in names if name in self._values]
        self._states = states
        self._windows = windows
        self._hessians = hessians
        self._weights = WeightStore()
        self._held: dict[str, ActivationStats] = {}

    def __getitem__(self, name: str) -> ActivationStats:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._held:
            self._held = self._collect(self._group(name))
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _group(self, first: str) -> list[str]:
        """Names from `first` on, as many as may be held at a time."""
        group: list[str] = []
        size = 0
        for name in self._names[self._names.index(first) :]:
            shape = self._values[name].shape
            depth = shape[-1] if shape is not None and isinstance(shape[-1], int) else 1
            size += 4 * depth * (depth if self._hessians else 1)
            if group and size > GROUP_BYTES:
                break
            group.append(name)
        return group

    def _collect(self, names: list[str]) -> dict[str, ActivationStats]:
        # Outputs are all that onnxruntime computes: neither logits nor the layers after the last name.
        self._model.graph.outputs[:] = [self._values[name] for name in names]
        session = make_session(self._model, SessionSettings(), self._weights)
        inputs = {value.name for value in session.get_inputs()}

        def run(tokens: np.ndarray, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
            feeds = {name: array for name, array in self._feeds(tokens).items() if name in inputs}
            return dict(zip(wanted, session.run(list(wanted), feeds), strict=True))

        return collect(run, self._windows, names, hessians=self._hessians)

    def _feeds(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        batch, length = tokens.shape
        feeds = {
            "input_ids": tokens,
            "lengths": np.full(batch, length),
            "past_lengths": np.zeros(batch, np.int64),
            "logit_positions": np.broadcast_to(np.arange(length), tokens.shape),
        }
        sizes = {BATCH: batch, SLOTS: length}
        for state in self._states:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in state.shape]
            feeds[state.past] = np.full(shape, state.initial, state.dtype)
        return feeds


def calibration_windows(model: HFModel, details: QuantizationConfig) -> list[np.ndarray]:
    """Reads the calibration text as rows of tokens, int64 `[1, L]` each.

    Raises:
        ConfigError: the text is too short, or is no text.
    """
    path = Path(str(details.calibration_file)).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}. Set calibration_file to a UTF-8 text.") from error
    ids = np.array(model.tokenizer.encode(text, add_special_tokens=False)[: details.calibration_tokens], np.int64)
    if len(ids) < LEAST_TOKENS:
        raise ConfigError(
            f"{path} has {len(ids)} tokens, but calibration needs {LEAST_TOKENS} or more, better some thousands. "
            "Set calibration_file to a longer text."
        )
    size = min(WINDOW, model.max_length)
    return [row[None] for row in np.array_split(ids, math.ceil(len(ids) / size))]
