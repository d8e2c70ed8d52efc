# SPDX-License-Identifier: Apache-2.0
"""The formats that packed weights are stored in, and what a code of each is worth."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from poptransformer.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Format:
    """One format of 4 or 8 bits.

    Attributes:
        name: as graphs and configurations call it.
        bits: of one code.
        zero: the code of the value zero, where there is no offset.
        least: the smallest value before scaling that the encoder uses.
        largest: the largest.
        dtype: numpy's type of the codes' values, for fp8.
        mantissa: bits of fp8's mantissa.
        min_exponent: of fp8's smallest normal number.
        overflow: the largest number that rounds to `largest`; what is beyond is counted as saturated.
    """

    name: str
    bits: int
    zero: int
    least: float
    largest: float
    dtype: np.dtype | None = None
    mantissa: int = -1
    min_exponent: int = 0
    overflow: float = 0.0

    @property
    def is_float8(self) -> bool:
        """Whether codes are 8-bit floats."""
        return self.dtype is not None

    @property
    def scale_dtype(self) -> np.dtype:
        """The type scales are stored in."""
        return np.dtype(np.float32 if self.is_float8 else np.float16)


def _float8(name: str) -> Format:
    dtype = np.dtype(getattr(ml_dtypes, f"float8_{name}"))
    info = ml_dtypes.finfo(dtype)
    largest = float(info.max)
    exponent = math.floor(math.log2(largest))
    midpoint = largest + math.ldexp(1.0, exponent - info.nmant - 1)
    # A tie goes to the even mantissa: to `largest` only where its own is even.
    is_even = math.ldexp(largest, info.nmant - exponent) % 2 == 0
    overflow = midpoint if is_even else float(np.nextafter(np.float32(midpoint), np.float32(0)))
    return Format(name, 8, 0, -largest, largest, dtype, info.nmant, info.minexp, overflow)


FORMATS = {
    format.name: format
    for format in (
        Format("int4", 4, 8, -8.0, 7.0),
        Format("int8", 8, 128, -127.0, 127.0),
        *map(_float8, ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")),
    )
}
FLOAT8_FORMATS = tuple(name for name, format in FORMATS.items() if format.is_float8)


def format_of(name: str) -> Format:
    """Returns the format called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"Invalid format {name}, options: {list(FORMATS)}. {did_you_mean(str(name), FORMATS)}")
    return FORMATS[name]


@functools.cache
def code_values(name: str, offsets: bool = False) -> np.ndarray:
    """Returns what each code is worth before scale and offset, fp32 `[16]` or `[256]`."""
    format = format_of(name)
    codes = np.arange(1 << format.bits, dtype=np.uint8)
    if format.dtype is not None:
        values = codes.view(format.dtype).astype(np.float32)
    else:
        values = codes.astype(np.float32) - np.float32(0 if offsets else format.zero)
    values.flags.writeable = False
    return values
