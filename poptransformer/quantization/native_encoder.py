# SPDX-License-Identifier: Apache-2.0
"""The encoder of the native library, called through ctypes: much faster than `search`, and equal to the last bit."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from poptransformer import native
from poptransformer.quantization import layout
from poptransformer.quantization.candidates import Candidates
from poptransformer.quantization.spec import WeightSpec

_ENCODE = "poptransformer_encode"
_DONE = -1
_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Request(ctypes.Structure):
    """The fields of EncodeRequest in custom_ops/encode/request.h, which says what they mean."""

    _fields_ = [
        ("weight", _POINTER),
        ("importance", _POINTER),
        ("candidates", _POINTER),
        ("base", _POINTER),
        ("codes", _POINTER),
        ("scales", _POINTER),
        ("offsets", _POINTER),
        ("row_errors", _POINTER),
        ("row_costs", _POINTER),
        ("row_saturated", _POINTER),
        ("rows", _INTEGER),
        ("depth", _INTEGER),
        ("block", _INTEGER),
        ("count", _INTEGER),
        ("refits", _INTEGER),
        ("bits", _INTEGER),
        ("zero", _INTEGER),
        ("mantissa", _INTEGER),
        ("min_exponent", _INTEGER),
        ("power_of_two", _INTEGER),
        ("signed_zero", _INTEGER),
        ("low", _FLOAT),
        ("high", _FLOAT),
        ("overflow", _FLOAT),
        ("end_divisor", _FLOAT),
    ]


def available() -> bool:
    """Whether the library is there and its encoder takes these requests."""
    fields = native.function("poptransformer_encode_fields")
    return fields is not None and fields() == len(Request._fields_) and native.function(_ENCODE) is not None


def encode_rows(
    values: np.ndarray,
    spec: WeightSpec,
    importance: np.ndarray | None,
    tried: Candidates,
    base: float | None,
    output: Any,
) -> None:
    """Encodes rows of finite values.

    Args:
        values: fp32 `[R, K]` in C order.
        spec: format and block.
        importance: fp32 `[K]` or None.
        tried: the candidates.
        base: the base scale of all blocks; None takes each from its values.
        output: where the results go: C-contiguous `codes`, `scales`, `offsets` (None where symmetric) of the rows'
            tiles, and `row_errors`, `row_costs`, `row_saturated`.

    Raises:
        MemoryError: the library could not allocate its work memory.
    """
    kind = spec.kind
    first = None if base is None else np.array([base], np.float32)
    arrays = {
        "weight": values,
        "importance": importance,
        "candidates": tried.values,
        "base": first,
        "codes": output.codes,
        "scales": output.scales,
        "offsets": output.offsets,
        "row_errors": output.row_errors,
        "row_costs": output.row_costs,
        "row_saturated": output.row_saturated,
    }
    request = Request(
        rows=len(values),
        depth=values.shape[1],
        block=spec.block if spec.block > 0 else layout.padded(values.shape[1], layout.CHUNK),
        count=len(tried.values),
        refits=tried.refits,
        bits=kind.bits,
        zero=kind.zero,
        mantissa=kind.mantissa,
        min_exponent=kind.min_exponent,
        power_of_two=spec.power_of_two,
        signed_zero=not spec.format.endswith("fnuz"),
        low=kind.least if spec.symmetric else 0,
        high=kind.largest if spec.symmetric else 15,
        overflow=kind.overflow,
        end_divisor=tried.end_divisor,
        **{name: None if array is None else array.ctypes.data for name, array in arrays.items()},
    )
    encode = native.function(_ENCODE)
    encode.restype = ctypes.c_int64
    if encode(ctypes.byref(request)) != _DONE:
        raise MemoryError("The native encoder found no memory for its work.")
