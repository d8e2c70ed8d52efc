# SPDX-License-Identifier: Apache-2.0
"""Matrices stored as small integers with one scale for each row, as in `chatglm-6b-int4` and `chatglm-6b-int8`.

There a linear layer has `weight` int8 `[N, K]`, or `[N, K / 2]` with two signed numbers of four bits in a byte, and
`weight_scale` `[N]`. Of a byte, the high half is the even column and the low half the odd one after it, as the kernels
`int4WeightExtractionHalf` and `int4WeightExtractionFloat` of those checkpoints unpack them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from poptransformer.checkpoint.errors import CorruptCheckpointError
from poptransformer.checkpoint.lazy_array import LazyArray, PackedBlocks
from poptransformer.checkpoint.state_dict import LazyTensor, StateDict

LAYOUTS = {4: "int4-rows", 8: "int8-rows"}
_WEIGHT, _SCALE = ".weight", "_scale"


def unpacked_rows(state_dict: StateDict, bits_of: Callable[[str], int]) -> StateDict:
    """Gives all packed matrices as the float matrices that they stand for, unread, and leaves out their scales.

    Args:
        state_dict: the checkpoint's tensors.
        bits_of: key of a packed weight -> 4 or 8.

    Raises:
        CorruptCheckpointError: as `packed_rows`.
    """
    scale_of = {key.removesuffix(_SCALE): key for key in state_dict if key.endswith(_WEIGHT + _SCALE)}
    packed = {key: packed_rows(state_dict, key, scale, bits_of(key)) for key, scale in scale_of.items()}
    scales = set(scale_of.values())
    return state_dict.updated(packed).renamed(lambda key: None if key in scales else key)


def packed_rows(state_dict: StateDict, weight_key: str, scale_key: str, bits: int = 4) -> LazyTensor:
    """Returns a packed matrix as the float matrix `[N, K]` that it stands for, unread.

    For a model's `process_hf_model_state_dict`: `state_dict.updated({key: packed_rows(state_dict, key, scale_key)})`.
    Quantization to as many bits, or more, then takes the stored integers and scales as they are.

    Args:
        state_dict: the checkpoint's tensors.
        weight_key: int8 `[N, K / 2]` for 4 bits, `[N, K]` for 8.
        scale_key: `[N]`, fp16 as a rule.
        bits: 4 or 8.

    Raises:
        CorruptCheckpointError: the two tensors do not fit together.
    """
    shape, scale_shape = state_dict.shape(weight_key), state_dict.shape(scale_key)
    if state_dict.dtype(weight_key) != np.int8 or len(shape) != 2 or scale_shape != shape[:1]:
        raise CorruptCheckpointError(
            f"{weight_key!r} of {state_dict.source} is {state_dict.dtype(weight_key)}{list(shape)} with scales "
            f"{list(scale_shape)}; expected int8 [N, columns] with scales [N]. Download the checkpoint again"
        )
    rows, depth = shape[0], shape[1] * (8 // bits)

    def codes() -> np.ndarray:
        return state_dict[weight_key]

    def scales() -> np.ndarray:
        return state_dict[scale_key]

    def values() -> np.ndarray:
        return signed_rows(codes(), bits).astype(np.float32) * scales().astype(np.float32)[:, None]

    def load() -> np.ndarray:
        # A scale that fp16 cannot hold, as bf16 ones may be, makes this a float matrix like any other.
        as_half = scales().astype(np.float16)
        is_exact = np.array_equal(as_half.astype(np.float32), scales().astype(np.float32))
        name = f"{weight_key!r} of {state_dict.source}"
        packed = PackedBlocks(name, LAYOUTS[bits], rows, depth, {"codes": codes, "scales": lambda: as_half})
        return cast(np.ndarray, LazyArray(values, (rows, depth), packed if is_exact else None))

    return LazyTensor(load, (rows, depth), np.dtype(np.float32))


def signed_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Returns the integers of packed rows one by one: int8 `[N, K]`."""
    if bits == 8:
        return codes
    pairs = np.empty((*codes.shape, 2), np.int8)
    pairs[..., 0] = codes >> 4  # keeps the sign
    pairs[..., 1] = np.left_shift(codes, 4) >> 4
    return pairs.reshape(len(codes), -1)
