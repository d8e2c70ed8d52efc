# SPDX-License-Identifier: Apache-2.0
"""Memory-mapped reading of `.safetensors` files.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, that many bytes of
JSON naming each tensor's dtype, shape and byte range, then the tensors end to end.
"""

from __future__ import annotations

import json
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from poptransformer.checkpoint.dtypes import SAFETENSORS_DTYPES, numpy_dtype
from poptransformer.checkpoint.errors import CorruptCheckpointError, UnsupportedCheckpointError
from poptransformer.checkpoint.mapped_file import MappedFile
from poptransformer.checkpoint.state_dict import LazyTensor

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the reference reader's limit


def _corrupt(path: Path, problem: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{path} is not a valid safetensors file: {problem}; download or convert it again")


def read_header(file: MappedFile) -> tuple[bytes, dict[str, Any]]:
    """Read and parse the header.

    Args:
        file: The mapped file.

    Returns:
        The header's bytes and its tensor entries by name, without `__metadata__`.

    Raises:
        CorruptCheckpointError: If the header does not fit the file or is not a JSON object.
    """
    if file.size < _LENGTH_BYTES:
        raise _corrupt(file.path, f"it has {file.size} bytes, less than the {_LENGTH_BYTES} of the header length")
    (length,) = struct.unpack_from("<Q", file.buffer, 0)
    available = file.size - _LENGTH_BYTES
    if length > min(available, _MAX_HEADER_BYTES):
        raise _corrupt(
            file.path, f"its header claims {length} bytes, but {available} bytes follow (it may be truncated)"
        )
    raw = file.buffer[_LENGTH_BYTES : _LENGTH_BYTES + length]

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise _corrupt(file.path, "a name occurs twice in its header")
        return entries

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise _corrupt(file.path, f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _corrupt(file.path, f"its header is a JSON {type(entries).__name__}, not an object")
    entries.pop("__metadata__", None)
    return raw, entries


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Validate one header entry and return dtype, shape, first byte and end, relative to the data."""

    def naturals(value: Any) -> list[int] | None:
        is_list = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
        return value if is_list else None

    fields = entry if isinstance(entry, dict) else {}
    dtype_name = fields.get("dtype")
    shape, offsets = naturals(fields.get("shape")), naturals(fields.get("data_offsets"))
    if not isinstance(dtype_name, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _corrupt(
            path,
            f"tensor {name!r} is described by {str(entry)[:200]}; expected dtype, shape and data_offsets",
        )
    if dtype_name not in SAFETENSORS_DTYPES:
        raise UnsupportedCheckpointError(
            f"tensor {name!r} of {path} has dtype {dtype_name}; supported: {', '.join(SAFETENSORS_DTYPES)}"
        )
    dtype = numpy_dtype(dtype_name)
    begin, end = offsets
    expected = math.prod(shape) * dtype.itemsize
    if end - begin != expected:
        raise _corrupt(
            path,
            f"tensor {name!r} ({dtype_name} {shape}) needs {expected} bytes, but its range has {end - begin}",
        )
    return dtype, tuple(shape), begin, end


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], bytes]:
    """Open a safetensors file without reading its tensors.

    Args:
        path: The file.

    Returns:
        The tensors by name as zero-copy, read-only views, and the header's bytes.

    Raises:
        CorruptCheckpointError: If the header is damaged, or the tensors overlap, leave holes, or do not fill
            the file exactly, as the format demands.
        UnsupportedCheckpointError: If a tensor has an unknown type.
    """
    file = MappedFile(path)
    raw, entries = read_header(file)
    start = _LENGTH_BYTES + len(raw)
    parsed = {name: _entry(path, name, entry) for name, entry in entries.items()}
    position, previous = 0, ""
    for name, (_, _, begin, end) in sorted(parsed.items(), key=lambda item: item[1][2:]):
        if begin != position:
            problem = f"overlaps {previous!r}" if begin < position else f"leaves a hole after {previous!r}"
            raise _corrupt(path, f"tensor {name!r} at byte {begin} {problem}, which ends at byte {position}")
        position, previous = end, name
    if position != file.size - start:
        raise _corrupt(
            path,
            f"its tensors take {position} bytes, but {file.size - start} follow the header (truncated?)",
        )
    tensors = {
        name: LazyTensor(partial(file.array, dtype, shape, start + begin), shape, dtype)
        for name, (dtype, shape, begin, _) in parsed.items()
    }
    return tensors, raw
