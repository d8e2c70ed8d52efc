# SPDX-License-Identifier: Apache-2.0
"""Names of tensor types in checkpoint files, and their numpy types.

bfloat16 and the 8-bit floats come from `ml_dtypes`, which is imported when a file holds one of them.
"""

from __future__ import annotations

import numpy as np

_NUMPY_NAMES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
_ML_DTYPES_NAMES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
SAFETENSORS_DTYPES = (*_NUMPY_NAMES, *_ML_DTYPES_NAMES)


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy type for a safetensors type name.

    Args:
        name: For example `F16` or `BF16`.

    Raises:
        KeyError: If the name is none of `SAFETENSORS_DTYPES`.
    """
    if name in _NUMPY_NAMES:
        return np.dtype(_NUMPY_NAMES[name])
    attribute = _ML_DTYPES_NAMES[name]
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, attribute))
