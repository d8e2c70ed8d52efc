# SPDX-License-Identifier: Apache-2.0
"""How one weight is to be quantized."""

from __future__ import annotations

from dataclasses import dataclass

from poptransformer.errors import ConfigError
from poptransformer.quantization.formats import FORMATS, Format, format_of

PER_CHANNEL = 0
PER_TENSOR = -1
AUTO = -2
BLOCKS = (32, 64, 128)
SCALE_METHODS = ("search", "minmax")


@dataclass(frozen=True)
class WeightSpec:
    """How one weight `[N, K]` is to be quantized; checked when it is made.

    Attributes:
        format: `int4`, `int8`, `e4m3fn`, `e5m2`, `e4m3fnuz` or `e5m2fnuz`.
        block: columns that share a scale: 32, 64, 128, 0 for a whole row (a channel), or -1 for the whole weight, which
            fp8 alone has. -2, the default, is 32 for integers and 0 for fp8.
        symmetric: int4 without offsets; with them a block has a smallest value besides its scale.
        scale_method: `search` tries scales and takes the one of the smallest error, `minmax` takes the one that the
            largest value gives.
        power_of_two: fp8 scales are `2^s`, s from -32 to 31, as the IPU has them, one for a channel or the weight.
    """

    format: str = "int4"
    block: int = AUTO
    symmetric: bool = True
    scale_method: str = "search"
    power_of_two: bool = False

    def __post_init__(self) -> None:
        kind = format_of(self.format)
        if self.block == AUTO:
            object.__setattr__(self, "block", PER_CHANNEL if kind.is_float8 else 32)
        if self.scale_method not in SCALE_METHODS:
            raise ConfigError(f"Invalid scale_method {self.scale_method}, options: {list(SCALE_METHODS)}.")
        self._check_block(kind)
        if not self.symmetric and self.format != "int4":
            raise ConfigError(f"Format {self.format} has no offsets; only int4 can be asymmetric. Set symmetric=true.")
        if self.power_of_two and not kind.is_float8:
            raise ConfigError(f"Format {self.format} has no power-of-two scales; options: {_float8_names()}.")
        if self.power_of_two and self.block > 0:
            raise ConfigError(
                f"Power-of-two scales belong to a channel (block=0) or the whole weight (block=-1), found block="
                f"{self.block}. Set block=0 or power_of_two=false."
            )

    def _check_block(self, kind: Format) -> None:
        options = [*BLOCKS, PER_CHANNEL, *([PER_TENSOR] if kind.is_float8 else [])]
        if self.block not in options or isinstance(self.block, bool):
            raise ConfigError(
                f"Invalid block {self.block} for format {self.format}, options: {options} (0 is a whole row"
                f"{', -1 the whole weight' if kind.is_float8 else ''})."
            )

    @property
    def kind(self) -> Format:
        """The format's description."""
        return format_of(self.format)


def _float8_names() -> list[str]:
    return [name for name, format in FORMATS.items() if format.is_float8]
