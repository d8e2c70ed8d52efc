# SPDX-License-Identifier: Apache-2.0
"""Arrays that are made when somebody reads them, and that still know the packed blocks they would be made from."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np


@dataclasses.dataclass(frozen=True)
class PackedBlocks:
    """A quantized matrix `[rows, depth]` as a checkpoint stores it.

    Attributes:
        name: what errors call it.
        layout: how the parts are to be read, a name that `poptransformer.quantization.checkpoints` knows: a ggml type
            such as `Q4_1`, or one of `packed_rows`.
        rows: rows of the matrix; scales and blocks never span rows.
        depth: columns of the matrix.
        parts: by name, functions that return the stored arrays, views of the mapped file where possible.
    """

    name: str
    layout: str
    rows: int
    depth: int
    parts: dict[str, Callable[[], np.ndarray]]


class LazyArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array whose values are computed on each read: by `numpy.asarray`, arithmetic, indexing, any method.

    `shape`, `dtype`, `ndim`, `size` and `nbytes` are known without reading. `.T` stays lazy and remembers the packed
    blocks; everything else gives an ordinary array.

    Args:
        load: returns the values in C order.
        shape: the shape of what `load` returns.
        packed: the blocks behind a matrix, or None where there are none that could be used as they are.
        transposed: whether this is the transpose of what `load` returns.
        stored: the view of the mapped file that `load` reads, which `release` lets go of.
        dtype: the type of what `load` returns.
    """

    is_lazy = True

    def __init__(
        self,
        load: Callable[[], np.ndarray],
        shape: tuple[int, ...],
        packed: PackedBlocks | None = None,
        transposed: bool = False,
        stored: np.ndarray | None = None,
        dtype: Any = np.float32,
    ) -> None:
        self._load = load
        self._packed = packed
        self.is_transposed = transposed
        self.stored = stored
        self.dtype = np.dtype(dtype)
        self.shape = tuple(shape[::-1] if transposed else shape)
        self.packed = None if transposed else packed

    @property
    def T(self) -> LazyArray:  # noqa: N802 - numpy's name
        """The transpose, still unread."""
        shape = self.shape if self.is_transposed else self.shape[::-1]
        return LazyArray(self._load, shape[::-1], self._packed, not self.is_transposed, self.stored, self.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values once they are read."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("The values of a LazyArray are made when they are read: copy=False cannot be had.")
        values = self._load()
        if self.is_transposed:
            values = values.T
        return values if dtype is None else values.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        read = [np.asarray(value) if isinstance(value, LazyArray) else value for value in inputs]
        return getattr(ufunc, method)(*read, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Methods such as `astype` or `reshape`. Asking for what no array has must not read anything.
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"A LazyArray has no attribute {name!r}.")
        return getattr(np.asarray(self), name)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def __repr__(self) -> str:
        return f"LazyArray({list(self.shape)} of {self.packed.layout if self.packed else 'unread'} values)"


def reordered_rows(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns `array[order]` as a `LazyArray`, made when it is read; packed blocks are reordered with it.

    Args:
        array: `[N, ...]`, a `LazyArray` too.
        order: int `[N]`, each number below N once.
    """
    packed = getattr(array, "packed", None)
    if packed is not None:
        parts = {name: functools.partial(_reordered_part, part, order) for name, part in packed.parts.items()}
        packed = dataclasses.replace(packed, parts=parts)
    stored = getattr(array, "stored", array)
    lazy = LazyArray(lambda: np.asarray(array)[order], array.shape, packed, stored=stored, dtype=array.dtype)
    return cast(np.ndarray, lazy)


def _reordered_part(part: Callable[[], np.ndarray], order: np.ndarray) -> np.ndarray:
    """A part in which each row of the matrix has the same number of elements, row after row."""
    stored = part()
    return stored.reshape(len(order), -1)[order].reshape(stored.shape)
