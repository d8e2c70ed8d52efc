# SPDX-License-Identifier: Apache-2.0
"""A weight as the graph sees it (fp32) over the array it lies in (the checkpoint's dtype and layout)."""

from __future__ import annotations

import weakref

import ml_dtypes
import numpy as np
import onnx_ir as ir

from poptransformer.errors import GraphError

STORED_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class WeightTensor(ir.LazyTensor):
    """An initializer of dtype `dtype` whose values lie in `array`, cast only when they are read.

    Layers bind weights with the dtype of the arithmetic, fp32. The array stays what the checkpoint holds, often a
    view of a memory-mapped file, so that a pass can still use the original bytes and building a graph reads none.

    Attributes:
        array: the values in their stored dtype; any strides.
    """

    def __init__(self, array: np.ndarray, dtype: ir.DataType, name: str | None = None) -> None:
        # Not through the bound method: in a cycle with itself, a weight that a pass has replaced would keep its memory.
        this = weakref.ref(self)
        super().__init__(lambda: this()._tensor_of_dtype(), dtype, ir.Shape(array.shape), name=name)  # type: ignore[union-attr]
        self.array = array

    def _tensor_of_dtype(self) -> ir.TensorProtocol:
        """The values as `dtype`, C-contiguous: the stored bytes themselves where they already are that."""
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(self.array, dtype=self.dtype.numpy())
        if array.dtype == np.float16 and self.array.dtype != np.float16 and _has_infinity(array):
            raise GraphError(
                f"The weight {self.name} holds values beyond {np.finfo(np.float16).max}, the largest of fp16. "
                "Use precision bf16 or fp32."
            )
        return ir.Tensor(array, self.dtype, name=self.name)

    def __repr__(self) -> str:
        return f"WeightTensor({self.name!r}, {self.dtype.name}{list(self.array.shape)} over {self.array.dtype})"


def _has_infinity(array: np.ndarray) -> bool:
    """Whether an fp16 array holds infinities or NaNs; looks at the bits, which takes no memory."""
    if not array.size:
        return False
    return bool(array.view(np.int16).max() >= 0x7C00 or array.view(np.uint16).max() >= 0xFC00)


def float_weight(array: np.ndarray, name: str) -> WeightTensor:
    """Wraps a floating point array as an fp32 initializer; integers and booleans keep their dtype.

    float64 is the one floating type narrowed here: checkpoints hold it by accident and no kernel reads it.
    """
    if not isinstance(
        getattr(array, "dtype", None), np.dtype
    ):  # Arrays, and what is read like one only when it must be.
        array = np.asarray(array)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype in STORED_FLOATS:
        return WeightTensor(array, ir.DataType.FLOAT, name)
    return WeightTensor(array, ir.DataType.from_numpy(array.dtype), name)
