# SPDX-License-Identifier: Apache-2.0
"""Engines whose caches round, against PyTorch models that attend to equally rounded keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers import DynamicCache

from poptransformer.engine import Engine

# What PyTorch and onnxruntime may differ by before they round.
_SLACK = 1e-5
_KINDS = {"float32": np.float32, "float16": np.float16, "uint8": ml_dtypes.float8_e4m3fn}


@dataclasses.dataclass
class Steps:
    """What an engine made of one row, fed in pieces.

    Attributes:
        logits: fp32 `[L, V]` of all tokens.
        caches: keys and values of each layer, `[1, K, L, H]`, as they are stored; none of a recurrent model.
    """

    logits: np.ndarray
    caches: list[tuple[np.ndarray, np.ndarray]]


def run(engine: Engine, ids: np.ndarray, pieces: Sequence[int] = ()) -> Steps:
    """Feeds a row to the step graph as any program would.

    Args:
        engine: the model.
        ids: int64 `[L]`.
        pieces: lengths of the pieces; one piece by default.
    """
    session, states = engine.runtime.step_session, engine.runtime.compiled.info.states
    sizes = {"batch": 1, "slots": len(ids)}
    carried = {s.past: np.full([sizes.get(str(dim), dim) for dim in s.shape], s.initial, s.dtype) for s in states}
    names = ["logits", *(state.present for state in states)]
    logits, start = [], 0
    for count in pieces or [len(ids)]:
        feeds = {"input_ids": ids[None, start : start + count], "logit_positions": np.arange(count)[None]}
        feeds |= {"lengths": np.array([count]), "past_lengths": np.array([start])}
        found, *presents = session.run(names, feeds | carried)
        carried = {state.past: present for state, present in zip(states, presents, strict=True)}
        logits.append(found[0])
        start += count
    assert start == len(ids)
    stored = [carried[state.past] for state in states if state.in_place]
    return Steps(np.concatenate(logits), list(zip(stored[::2], stored[1::2], strict=True)))


def values(stored: np.ndarray) -> np.ndarray:
    """What a cache's elements stand for, fp32; bytes are E4M3FN."""
    return stored.view(_KINDS[stored.dtype.name]).astype(np.float32)


class StoredCache(DynamicCache):
    """Attends to the keys and values that an engine stored, if they are PyTorch's own, rounded.

    Where the two differ in their last bit, one that lies halfway is rounded the one way here and the other way there,
    and all that follows differs. So each stored number is held to be a right rounding, and then taken.
    """

    def __init__(self, caches: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self._stored = caches

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Takes one layer's."""
        taken = [
            _taken(own.numpy(), stored)
            for own, stored in zip((key_states, value_states), self._stored[layer_idx], strict=True)
        ]
        return super().update(*taken, layer_idx, *args, **kwargs)


def _taken(own: np.ndarray, stored: np.ndarray) -> torch.Tensor:
    kind, found = _KINDS[stored.dtype.name], values(stored)
    step = 0.0 if kind is np.float32 else _step(found, ml_dtypes.finfo(kind))
    np.testing.assert_array_less(np.abs(found - own) - step / 2, _SLACK)
    return torch.from_numpy(found)


def _step(x: np.ndarray, kind: Any) -> np.ndarray:
    """From each number to the next larger one of its type."""
    exponent = np.floor(np.log2(np.maximum(np.abs(x), float(kind.smallest_normal))))
    return np.exp2(exponent - kind.nmant)


def reference_logits(model: Any, ids: np.ndarray, caches: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """PyTorch's logits `[L, V]` of one row, with the keys and values that an engine stored."""
    with torch.no_grad():
        cache = {"past_key_values": StoredCache(caches)} if caches else {}
        return model(torch.from_numpy(ids)[None], **cache).logits[0].numpy()
