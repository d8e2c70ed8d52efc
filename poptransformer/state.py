# SPDX-License-Identifier: Apache-2.0
"""What one step of generation hands to the next. Graphs and runtimes share it, so it imports neither."""

from __future__ import annotations

import dataclasses

BATCH, TOKENS, SLOTS, CHOSEN = "batch", "tokens", "slots", "chosen"


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """A tensor that one step hands to the next.

    Attributes:
        past: name of the graph input.
        present: name of the graph output.
        dtype: NumPy dtype name.
        shape: dimensions; `batch` is the number of rows, `slots` the capacity of the cache in tokens.
        initial: value of every element before the first step.
        in_place: only slots of this step's tokens differ between past and present, so one buffer can serve both.
    """

    past: str
    present: str
    dtype: str
    shape: tuple[int | str, ...]
    initial: float = 0.0
    in_place: bool = False


# What the decoder hands to its next step besides the model's states: tokens of each row, and how many it has generated.
COUNTERS = (
    StateSpec("past_lengths", "total_lengths", "int64", (BATCH,)),
    StateSpec("step", "next_step", "int64", (BATCH,)),
)
