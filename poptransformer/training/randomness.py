# SPDX-License-Identifier: Apache-2.0
"""Random number generators: seeded, kept apart for data and model, saved and restored."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> State:
    """Returns the state of all generators, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    state: State = {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: State) -> None:
    """Restores what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class Stream:
    """Generators of one part of a run, swapped in while it works: what data draws does not depend on the model."""

    def __init__(self, state: State) -> None:
        self.state = state

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Uses these generators in the block, and the surrounding ones after it."""
        outside = random_state()
        set_random_state(self.state)
        try:
            yield
        finally:
            self.state = random_state()
            set_random_state(outside)
