# SPDX-License-Identifier: Apache-2.0
"""Reading the values of a GGUF header, one after the other."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from poptransformer.checkpoint.errors import CorruptCheckpointError
from poptransformer.checkpoint.mapped_file import MappedFile

# struct formats of the scalar value types
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class HeaderReader:
    """Walks through a GGUF header, refusing to step outside the file.

    Args:
        file: The mapped file.

    Attributes:
        file: As given.
        position: The next byte to read.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = 0

    def corrupt(self, problem: str) -> CorruptCheckpointError:
        """Return the error that reports a problem with this file."""
        return CorruptCheckpointError(
            f"{self.file.path} is not a valid GGUF file: {problem}; download or convert it again"
        )

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they began."""
        start = self.position
        if count > self.file.size - start:
            raise self.corrupt(
                f"{what} needs {count} bytes at byte {start}, but the file has {self.file.size} (truncated?)"
            )
        self.position = start + count
        return start

    def scalar(self, code: str, what: str) -> Any:
        """Read one number; `code` is its `struct` format."""
        layout = "<" + code
        return struct.unpack_from(layout, self.file.buffer, self.take(struct.calcsize(layout), what))[0]

    def string(self, what: str) -> str:
        """Read one string."""
        length = self.scalar("Q", what)
        start = self.take(length, what)
        try:
            return self.file.buffer[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} is not UTF-8") from error

    def strings(self, count: int, what: str) -> list[str]:
        """Read an array of strings; the loop is tight because vocabularies have 10^5 of them."""
        buffer, size, position = self.file.buffer, self.file.size, self.position
        unpack: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        pieces = []
        try:
            for _ in range(count):
                end = position + 8 + unpack(buffer, position)[0]
                if end > size:
                    raise self.corrupt(f"a string of {what} reaches byte {end}, beyond the file's {size} (truncated?)")
                pieces.append(buffer[position + 8 : end])
                position = end
        except struct.error as error:
            raise self.corrupt(f"{what} is cut off at byte {position} (truncated?)") from error
        self.position = position
        # A vocabulary may hold pieces of a character; they must survive a round trip.
        return [piece.decode("utf-8", "surrogateescape") for piece in pieces]

    def value(self, kind: int, what: str) -> Any:
        """Read a metadata value of the given type."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            raise self.corrupt(f"{what} has the unknown value type {kind}")
        item, count = self.scalar("I", what), self.scalar("Q", what)
        if item == _STRING:
            return self.strings(count, what)
        if item not in _SCALARS:
            raise self.corrupt(f"{what} is an array of the unsupported type {item}")
        dtype = np.dtype("<" + _SCALARS[item])
        start = self.take(count * dtype.itemsize, what)
        return np.frombuffer(self.file.buffer, dtype, count, start) if count else np.empty(0, dtype)
