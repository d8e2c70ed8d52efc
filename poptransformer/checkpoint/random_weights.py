# SPDX-License-Identifier: Apache-2.0
"""Seeded random weights, for building a model of any size from its config alone."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from poptransformer.checkpoint.errors import CheckpointError, ShapeMismatchError
from poptransformer.checkpoint.state_dict import LazyTensor, StateDict, TensorLike

logger = logging.getLogger(__name__)


class RandomStateDict(StateDict):
    """A state dict that has every weight it is asked for.

    A weight depends on its key and the seed alone, not on the order of access. One-dimensional weights of
    norms are ones, biases are zeros, all others are normal with the deviation transformers initialises with.

    Args:
        seed: Any integer.
        std: Standard deviation.
        source: What messages call this checkpoint.
    """

    def __init__(self, seed: int, std: float, source: str) -> None:
        super().__init__({}, source)
        self.seed = seed
        self.std = std
        self._announced = False

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str)

    def _tensor(self, key: str) -> LazyTensor:
        if key in self._tensors:
            return self._tensors[key]
        raise CheckpointError(
            f"{self.source} makes weights on demand and does not know the shape of {key!r}; "
            "ask with get_tensor(key, shape)"
        )

    def get_tensor(self, key: str, shape: Sequence[int] | None = None) -> np.ndarray:
        """Return one weight, drawing it if need be.

        Args:
            key: Its name.
            shape: Its shape; may be None once the key has been asked for with a shape.

        Raises:
            CheckpointError: If the shape is not known.
            ShapeMismatchError: If the key was asked for with another shape before.
        """
        if shape is None:
            return self[key]
        wanted = tuple(int(size) for size in shape)
        if key not in self._tensors:
            self._announce()
            self._tensors[key] = LazyTensor(lambda: self._draw(key, wanted), wanted, np.dtype(np.float32))
        elif self.shape(key) != wanted:
            raise ShapeMismatchError(key, self.source, wanted, self.shape(key))
        return self[key]

    def _announce(self) -> None:
        if not self._announced:
            logger.warning("using random weights (seed %d, std %g): %s", self.seed, self.std, self.source)
            self._announced = True

    def _draw(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Draw one weight, `float32 [*shape]`."""
        owner, _, kind = key.lower().rpartition(".")
        owner = owner.rpartition(".")[2]
        if kind == "bias":
            return np.zeros(shape, np.float32)
        is_norm = "norm" in owner or any(part.startswith("ln") for part in owner.split("_"))
        if len(shape) == 1 and kind == "weight" and is_norm:
            return np.ones(shape, np.float32)
        digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
        weights = generator.standard_normal(shape, dtype=np.float32)
        weights *= np.float32(self.std)
        return weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def renamed(self, rename: Callable[[str], str | None]) -> StateDict:
        """Return itself: a weight of any name can be drawn."""
        return self

    def updated(self, tensors: Mapping[str, TensorLike]) -> StateDict:
        """Return a state dict in which the given tensors are fixed and all others are random."""
        other = RandomStateDict(self.seed, self.std, self.source)
        other._tensors = {**self._tensors, **{key: LazyTensor.wrap(value) for key, value in tensors.items()}}
        return other
