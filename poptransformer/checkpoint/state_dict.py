# SPDX-License-Identifier: Apache-2.0
"""Named tensors that are read only when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poptransformer.checkpoint.errors import CheckpointError, MissingWeightError, ShapeMismatchError


@dataclass(frozen=True)
class LazyTensor:
    """One tensor: what is known without reading it, and how to read it.

    Attributes:
        load: Returns the array; called on every access, so a caller keeps the result if it is not cheap.
        shape: Its shape, or None if only `load` can tell.
        dtype: Its type, or None if only `load` can tell.
    """

    load: Callable[[], np.ndarray]
    shape: tuple[int, ...] | None = None
    dtype: np.dtype | None = None

    @classmethod
    def wrap(cls, value: LazyTensor | np.ndarray | Callable[[], np.ndarray]) -> LazyTensor:
        """Make a lazy tensor of an array or of a callable without arguments."""
        if isinstance(value, LazyTensor):
            return value
        if callable(value):
            return cls(value)
        array = value if getattr(value, "is_lazy", False) else np.asarray(value)
        return cls(lambda: array, array.shape, array.dtype)


TensorLike = LazyTensor | np.ndarray | Callable[[], np.ndarray]


class StateDict(Mapping[str, np.ndarray]):
    """Weights by name, read on access.

    Behaves like a read-only dictionary of arrays, and holds no more than names, shapes and the mapped files.

    Args:
        tensors: The tensors by name.
        source: What error messages call this checkpoint.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], source: str = "the state dict") -> None:
        self._tensors = dict(tensors)
        self.source = source

    @classmethod
    def wrap(cls, mapping: Mapping[str, TensorLike], source: str = "the state dict") -> StateDict:
        """Make a state dict of any mapping from names to arrays; a `StateDict` is returned as it is."""
        if isinstance(mapping, StateDict):
            return mapping
        return cls({key: LazyTensor.wrap(value) for key, value in mapping.items()}, source)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._tensor(key).load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __repr__(self) -> str:
        return f"StateDict({len(self)} tensors of {self.source})"

    def _tensor(self, key: str) -> LazyTensor:
        try:
            return self._tensors[key]
        except KeyError:
            raise MissingWeightError(key, self.source, self._tensors) from None

    def get_tensor(self, key: str, shape: Sequence[int] | None = None) -> np.ndarray:
        """Return one tensor and check its shape.

        Args:
            key: Its name.
            shape: The shape it must have, or None to accept any.

        Raises:
            MissingWeightError: If there is no such tensor; names the nearest ones.
            ShapeMismatchError: If its shape differs.
        """
        if shape is not None and self.shape(key) != tuple(shape):
            raise ShapeMismatchError(key, self.source, shape, self.shape(key))
        return self[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape, where possible without reading the tensor."""
        tensor = self._tensor(key)
        return tensor.load().shape if tensor.shape is None else tensor.shape

    def dtype(self, key: str) -> np.dtype:
        """Return a tensor's type, where possible without reading the tensor."""
        tensor = self._tensor(key)
        return tensor.load().dtype if tensor.dtype is None else tensor.dtype

    def nbytes(self, key: str) -> int:
        """Return a tensor's size in bytes once it is read."""
        return math.prod(self.shape(key)) * self.dtype(key).itemsize

    def renamed(self, rename: Callable[[str], str | None]) -> StateDict:
        """Return the same tensors under other names; nothing is read.

        Args:
            rename: Maps an old name to the new one, or to None to leave the tensor out.

        Raises:
            CheckpointError: If two tensors get the same name.
        """
        origins: dict[str, str] = {}
        for key in self._tensors:
            name = rename(key)
            if name is None:
                continue
            if name in origins:
                raise CheckpointError(f"{origins[name]!r} and {key!r} of {self.source} would both be named {name!r}")
            origins[name] = key
        return StateDict({name: self._tensors[key] for name, key in origins.items()}, self.source)

    def updated(self, tensors: Mapping[str, TensorLike]) -> StateDict:
        """Return a state dict in which the given tensors are added or replaced.

        Args:
            tensors: Arrays, callables without arguments that return one, or `LazyTensor`s.
        """
        added = {key: LazyTensor.wrap(value) for key, value in tensors.items()}
        return StateDict({**self._tensors, **added}, self.source)
