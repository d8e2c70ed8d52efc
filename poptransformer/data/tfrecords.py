# SPDX-License-Identifier: Apache-2.0
"""TFRecord files, without TensorFlow.

A record is its length (uint64), a checksum of that, its bytes, and a checksum of those, all little-endian. Checksums
are CRC-32C, rotated and shifted (tensorflow/core/lib/hash/crc32c.h).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from poptransformer.errors import PopTransformerError

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


class CorruptRecordError(PopTransformerError, ValueError):
    """A record is damaged or cut short."""


def masked_crc(data: bytes) -> int:
    """Returns the checksum that stands after `data` in a file.

    Raises:
        PopTransformerError: google-crc32c is not installed.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise PopTransformerError("TFRecord files need google-crc32c: pip install -r requirements-train.txt") from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


class RecordWriter:
    """Writes records to a file; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")

    def write(self, data: bytes) -> None:
        """Appends one record."""
        length = _LENGTH.pack(len(data))
        for part in (length, _CHECKSUM.pack(masked_crc(length)), data, _CHECKSUM.pack(masked_crc(data))):
            self._file.write(part)

    def close(self) -> None:
        """Writes out what is left."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path | str) -> Iterator[bytes]:
    """Yields the records of a file.

    Raises:
        CorruptRecordError: names the file and the offset of a record that is damaged or cut short.
        PopTransformerError: there is no such file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise PopTransformerError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    with file:
        while (offset := file.tell()) < size:
            yield _read_record(file, path, offset, size)


def _read_record(file: BinaryIO, path: Path, offset: int, size: int) -> bytes:
    def part(count: int, what: str) -> bytes:
        # Checked before it is read: a damaged length may ask for any number of bytes.
        if file.tell() + count > size:
            raise CorruptRecordError(
                f"{path} ends within the record at offset {offset}: its {what} takes {count} bytes, "
                f"{size - file.tell()} are left. Write the file again."
            )
        return file.read(count)

    length = part(_LENGTH.size, "length")
    if masked_crc(length) != _CHECKSUM.unpack(part(_CHECKSUM.size, "checksum"))[0]:
        raise CorruptRecordError(f"{path}: the length of the record at offset {offset} is damaged. Write it again.")
    data = part(_LENGTH.unpack(length)[0], "content")
    if masked_crc(data) != _CHECKSUM.unpack(part(_CHECKSUM.size, "checksum"))[0]:
        raise CorruptRecordError(f"{path}: the record at offset {offset} is damaged. Write the file again.")
    return data
