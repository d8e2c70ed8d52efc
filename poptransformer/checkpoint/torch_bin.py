# SPDX-License-Identifier: Apache-2.0
"""Reading `pytorch_model.bin` files, where torch is installed.

Only `torch.load(weights_only=True)` is used: it rebuilds tensors and refuses every other pickled object.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from poptransformer.checkpoint.dtypes import numpy_dtype
from poptransformer.checkpoint.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from poptransformer.checkpoint.state_dict import LazyTensor

# Types numpy lacks: (torch's name, a same-sized type both know, the safetensors name).
_REINTERPRETED = {
    "torch.bfloat16": ("int16", "BF16"),
    "torch.float8_e4m3fn": ("uint8", "F8_E4M3"),
    "torch.float8_e5m2": ("uint8", "F8_E5M2"),
}


def read_torch_bin(path: Path) -> dict[str, LazyTensor]:
    """Open a torch checkpoint file; its tensors stay in the memory-mapped file where its format allows.

    Args:
        path: The `.bin` file.

    Raises:
        UnsupportedCheckpointError: If torch is not installed.
        CheckpointNotFoundError: If the file does not exist.
        CorruptCheckpointError: If torch cannot read it, or it holds anything but named tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise UnsupportedCheckpointError(
            f"{path} is a torch file and torch is not installed; run `pip install torch==2.13.0`, "
            "or convert the checkpoint to safetensors"
        ) from error
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is not a file; check the path")
    state = _load(torch, path)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise CorruptCheckpointError(f"{path} does not hold a dictionary of named tensors; save model.state_dict()")
    return lazy_tensors(state, path)


def lazy_tensors(state: Mapping[str, Any], source: Path | str) -> dict[str, LazyTensor]:
    """Describe torch tensors as numpy arrays that share their memory.

    Args:
        state: Tensors by name, on the CPU.
        source: What error messages call where they come from.

    Raises:
        UnsupportedCheckpointError: If numpy has no such type.
    """
    return {key: _lazy(value.detach(), key, source) for key, value in state.items()}


def _load(torch: Any, path: Path) -> Any:
    """Load the file, memory-mapped unless it is in the format torch wrote before 1.6."""
    # torch reports damage as RuntimeError, UnpicklingError, EOFError and others, depending on the byte.
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CorruptCheckpointError(
            f"torch cannot read {path}: {reason}; download it again, or convert it to safetensors"
        ) from error


def _lazy(tensor: Any, key: str, path: Path | str) -> LazyTensor:
    """Describe one torch tensor as a numpy array that shares its memory."""
    name = str(tensor.dtype)
    if name in _REINTERPRETED:
        carrier, dtype_name = _REINTERPRETED[name]
        return LazyTensor(partial(_view, tensor, carrier, dtype_name), tuple(tensor.shape), numpy_dtype(dtype_name))
    try:
        dtype = tensor.new_empty(0).numpy().dtype
    except TypeError as error:
        raise UnsupportedCheckpointError(
            f"tensor {key!r} of {path} has the type {name}; convert it to float32"
        ) from error
    return LazyTensor(partial(_view, tensor, None, None), tuple(tensor.shape), dtype)


def _view(tensor: Any, carrier: str | None, dtype_name: str | None) -> np.ndarray:
    """Return a read-only numpy view of a torch tensor."""
    if carrier is None or dtype_name is None:
        array = tensor.numpy().view()
    else:
        import torch

        array = tensor.contiguous().view(getattr(torch, carrier)).numpy().view(numpy_dtype(dtype_name))
    array.flags.writeable = False
    return array
