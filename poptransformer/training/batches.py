# SPDX-License-Identifier: Apache-2.0
"""Batches of a data loader, epoch after epoch, from any point on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from poptransformer.errors import ConfigError
from poptransformer.training.randomness import Stream


class Batches:
    """An endless row of batches whose position can be saved and found again.

    An epoch is drawn from the generators' state at its beginning, which is what is saved. To continue in the middle of
    one, its batches up to there are loaded again and dropped.

    Args:
        loader: what `train_data_fn` returned; each `iter(loader)` is an epoch.
        stream: the generators that the loader draws from.
    """

    def __init__(self, loader: Iterable[Any], stream: Stream) -> None:
        self.loader = loader
        self.stream = stream
        self.epoch = 0
        self.taken = 0  # batches of this epoch
        self._epoch_state = stream.state
        self._iterator: Iterator[Any] | None = None

    def next(self) -> Any:
        """Returns the next batch.

        Raises:
            ConfigError: the loader has none.
        """
        with self.stream.active():
            if self._iterator is None:
                self._iterator = iter(self.loader)
            try:
                batch = next(self._iterator)
            except StopIteration:
                batch = None
        if batch is not None:
            self.taken += 1
            return batch
        if self.taken == 0:
            raise ConfigError("The data loader has no batches. Check the input files and the batch size.")
        self.epoch, self.taken, self._iterator = self.epoch + 1, 0, None
        self._epoch_state = self.stream.state
        return self.next()

    def state(self) -> dict[str, Any]:
        """Returns the position, for a checkpoint."""
        return {"epoch": self.epoch, "taken": self.taken, "epoch_state": self._epoch_state}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a position that `state` returned."""
        self.epoch, self.taken, self._iterator = state["epoch"], 0, None
        self._epoch_state = self.stream.state = state["epoch_state"]
        for _ in range(state["taken"]):
            self.next()
