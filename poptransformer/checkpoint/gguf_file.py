# SPDX-License-Identifier: Apache-2.0
"""Reading a `.gguf` file: metadata and tensor table, checked against the file's size before anything is used.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, key-value pairs,
tensor infos, padding, tensor data. We parse it ourselves because `gguf.GGUFReader` makes several numpy arrays
per vocabulary entry (2.5 s for 49152 tokens, against 0.1 s here) and reports damage as whatever numpy raises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from poptransformer.checkpoint.errors import UnsupportedCheckpointError
from poptransformer.checkpoint.gguf_header import HeaderReader
from poptransformer.checkpoint.gguf_types import block_of
from poptransformer.checkpoint.mapped_file import MappedFile

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_PLAIN_TYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}


@dataclass(frozen=True)
class GGUFTensor:
    """One entry of the tensor table.

    Attributes:
        name: The name llama.cpp gives it.
        type_name: Its ggml type, for example `Q4_1`.
        shape: Its shape, slowest axis first (the file stores the reverse).
        offset: Its first byte, from the start of the file.
        nbytes: Its size in the file, in bytes.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF file.

    Attributes:
        file: The mapped file.
        metadata: Every key-value pair; strings are `str`, numeric arrays are numpy arrays.
        tensors: The tensor table by name.
        header_bytes: How many bytes precede the tensor data.
    """

    file: MappedFile
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    header_bytes: int

    def raw(self, tensor: GGUFTensor) -> np.ndarray:
        """Return a tensor as it is stored, read-only and without copying.

        Args:
            tensor: An entry of `tensors`.

        Returns:
            An array in the tensor's shape for plain types, else bytes `uint8 [..., bytes per row]`.
        """
        if tensor.type_name in _PLAIN_TYPES:
            return self.file.array(np.dtype(_PLAIN_TYPES[tensor.type_name]), tensor.shape, tensor.offset)
        if tensor.type_name == "BF16":
            import ml_dtypes

            return self.file.array(np.dtype(ml_dtypes.bfloat16), tensor.shape, tensor.offset)
        rows = math.prod(tensor.shape[:-1])
        row_bytes = tensor.nbytes // rows if rows else 0
        return self.file.array(np.dtype(np.uint8), (*tensor.shape[:-1], row_bytes), tensor.offset)


def read_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file: read its metadata and tensor table, and map its tensors.

    Args:
        path: The file.

    Raises:
        CorruptCheckpointError: If the file is truncated or its header contradicts itself.
        UnsupportedCheckpointError: If its version, byte order or a tensor type is not supported.
    """
    reader = HeaderReader(MappedFile(path))
    start = reader.take(len(_MAGIC), "the magic number")
    magic = reader.file.buffer[start : start + len(_MAGIC)]
    if magic != _MAGIC:
        raise reader.corrupt(f"it begins with {magic!r}, not {_MAGIC!r}")
    version = reader.scalar("I", "the version")
    if version not in _VERSIONS:
        raise UnsupportedCheckpointError(
            f"{path} is GGUF version {version}; supported: {_VERSIONS}, little endian. Convert it again"
        )
    tensor_count, pair_count = (
        reader.scalar("Q", "the tensor count"),
        reader.scalar("Q", "the metadata count"),
    )
    metadata: dict[str, Any] = {}
    for index in range(pair_count):
        key = reader.string(f"metadata key {index} of {pair_count}")
        if key in metadata:
            raise reader.corrupt(f"metadata key {key!r} occurs twice")
        metadata[key] = reader.value(reader.scalar("I", f"the type of {key!r}"), f"metadata {key!r}")
    infos = [_read_info(reader, f"tensor {index} of {tensor_count}") for index in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise reader.corrupt(f"general.alignment is {alignment!r}, not a power of two")
    data_start = -(-reader.position // alignment) * alignment
    return GGUFFile(reader.file, metadata, _place(reader, infos, data_start), data_start)


def _read_info(reader: HeaderReader, what: str) -> tuple[str, int, tuple[int, ...], int]:
    """Read one tensor info: name, ggml type, shape slowest axis first, offset within the data."""
    name = reader.string(f"the name of {what}")
    dimensions = reader.scalar("I", f"the rank of {name!r}")
    if dimensions > _MAX_DIMENSIONS:
        raise reader.corrupt(f"tensor {name!r} claims {dimensions} dimensions, at most {_MAX_DIMENSIONS} exist")
    shape = tuple(reader.scalar("Q", f"the shape of {name!r}") for _ in range(dimensions))[::-1]
    return (
        name,
        reader.scalar("I", f"the type of {name!r}"),
        shape,
        reader.scalar("Q", f"the offset of {name!r}"),
    )


def _place(
    reader: HeaderReader, infos: list[tuple[str, int, tuple[int, ...], int]], data_start: int
) -> dict[str, GGUFTensor]:
    """Check every tensor's type, size and place in the file."""
    tensors: dict[str, GGUFTensor] = {}
    for name, kind, shape, offset in infos:
        if name in tensors:
            raise reader.corrupt(f"tensor {name!r} occurs twice")
        try:
            type_name, block, block_bytes = block_of(kind)
        except KeyError:
            raise UnsupportedCheckpointError(
                f"tensor {name!r} of {reader.file.path} has the ggml type {kind}, which the installed gguf "
                "package does not know; upgrade it, or convert the file to another quantization"
            ) from None
        if shape and shape[-1] % block:
            raise reader.corrupt(f"tensor {name!r} {list(shape)} does not divide into {type_name} blocks of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        begin = data_start + offset
        if begin + nbytes > reader.file.size:
            raise reader.corrupt(
                f"tensor {name!r} ({type_name} {list(shape)}) ends at byte {begin + nbytes}, "
                f"but the file has {reader.file.size} (truncated?)"
            )
        tensors[name] = GGUFTensor(name, type_name, shape, begin, nbytes)
    return tensors
