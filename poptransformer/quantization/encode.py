# SPDX-License-Identifier: Apache-2.0
"""From a float weight to a packed one."""

from __future__ import annotations

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.quantization import layout
from poptransformer.quantization.packed import PackedWeight
from poptransformer.quantization.spec import PER_TENSOR, WeightSpec


def encode(
    weight: np.ndarray, spec: WeightSpec, importance: np.ndarray | None = None, name: str = "the weight"
) -> PackedWeight:
    """Quantizes a weight and packs it.

    Args:
        weight: `[N, K]`, any float dtype, any strides; views of mapped files are read once, in pieces.
        spec: format, block and how scales are chosen.
        importance: fp32 `[K]`, the mean squared input of each column: weighs the errors in the search for scales.
        name: what errors call the weight.

    Raises:
        ConfigError: the weight is no matrix, holds NaN or infinity, or `importance` does not fit.
    """
    if weight.ndim != 2:
        raise ConfigError(f"Only matrices can be quantized, found {name} of shape {list(weight.shape)}.")
    values = np.asarray(weight, np.float32)
    if not np.isfinite(values).all():
        raise ConfigError(f"{name} holds NaN or infinity and cannot be quantized. Leave it in a float precision.")
    block = max(spec.block, 0)
    size = block or layout.padded(weight.shape[1], layout.CHUNK)
    padded = np.pad(values, ((0, 0), (0, -weight.shape[1] % size))).reshape(len(values), -1, size)
    scales = np.abs(padded).max(axis=2) / np.float32(spec.kind.largest)
    if spec.block == PER_TENSOR:
        scales[:] = scales.max()
    offsets = None
    if spec.power_of_two:
        scales = np.exp2(np.clip(np.ceil(np.log2(np.maximum(scales, 2.0**-32))), -32, 31)).astype(np.float32)
    if not spec.symmetric:
        offsets = padded.min(axis=2).astype(np.float16)
        scales = (padded.max(axis=2) - offsets) / np.float32(15)
    scales = scales.astype(spec.kind.scale_dtype)
    wide = scales.astype(np.float32)[..., None]
    scaled = np.divide(
        padded if offsets is None else padded - offsets.astype(np.float32)[..., None],
        wide,
        out=np.zeros_like(padded),
        where=wide != 0,
    )
    if spec.kind.dtype is not None:
        clipped = np.clip(scaled, -spec.kind.largest, spec.kind.largest)
        codes = clipped.astype(spec.kind.dtype).view(np.uint8)
        rounded = codes.view(spec.kind.dtype).astype(np.float32)
    else:
        low, high = (-spec.kind.zero, spec.kind.largest) if spec.symmetric else (0, 15)
        rounded = np.clip(np.rint(scaled), low, high)
        codes = (rounded - low).astype(np.uint8)
    difference = rounded * wide + (0 if offsets is None else offsets.astype(np.float32)[..., None]) - padded
    error = float(np.sqrt(np.square(difference).sum() / max(np.square(padded).sum(), 1e-30)))
    codes = codes.reshape(len(values), -1)[:, : weight.shape[1]]
    return PackedWeight.from_rows(spec.format, codes, scales, offsets, block=block, error=error)
