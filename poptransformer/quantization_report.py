# SPDX-License-Identifier: Apache-2.0
"""What quantization did to each weight; travels with a saved model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class WeightReport:
    """One weight.

    Attributes:
        name: the initializer's name before it was packed.
        shape: rows (outputs) and columns (inputs).
        precision: what the recipe asked for, or `fp32` where no rule matched.
        stored: how it is stored: `int4 block 32`, `int8 channel`, `e4m3fn channel`, `fp16`.
        nbytes: bytes of codes, scales and offsets.
        error: root of the mean squared change, relative to the root mean square of the weight; 0 where the
            checkpoint's own numbers are used, None for a float type that was not compared.
        saturated: values beyond the format's range, which became its largest or smallest.
    """

    name: str
    shape: tuple[int, int]
    precision: str
    stored: str
    nbytes: int
    error: float | None
    saturated: int

    @property
    def is_packed(self) -> bool:
        """Whether the weight is in 4 or 8 bits."""
        return not self.stored.startswith(("fp", "bf"))


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """All weight matrices of a model.

    Attributes:
        weights: in the model's order.
    """

    weights: tuple[WeightReport, ...] = ()

    def to_json(self) -> list[dict[str, Any]]:
        """Returns it as plain lists and dictionaries."""
        return [dataclasses.asdict(weight) for weight in self.weights]

    @classmethod
    def from_json(cls, weights: Iterable[Mapping[str, Any]]) -> QuantizationReport:
        """Makes it of what `to_json` gave, after a way through JSON."""
        return cls(tuple(WeightReport(**{**weight, "shape": tuple(weight["shape"])}) for weight in weights))

    @property
    def packed(self) -> tuple[WeightReport, ...]:
        """The weights in 4 or 8 bits."""
        return tuple(weight for weight in self.weights if weight.is_packed)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight matrices."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def saturated(self) -> int:
        """Saturated values of all weights."""
        return sum(weight.saturated for weight in self.weights)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of one value, scales and padding included."""
        return 8 * self.nbytes / max(1, sum(math.prod(weight.shape) for weight in self.weights))

    @property
    def error(self) -> float:
        """Root mean square of the errors of the packed weights, each value counted once."""
        sizes = [(math.prod(weight.shape), weight.error or 0.0) for weight in self.packed]
        return math.sqrt(sum(size * error**2 for size, error in sizes) / max(1, sum(size for size, _ in sizes)))

    @property
    def summary(self) -> str:
        """The totals in one line."""
        return (
            f"quantized {len(self.packed)} of {len(self.weights)} weight matrices: {_bytes(self.nbytes)}, "
            f"{self.bits_per_weight:.2f} bits per weight, relative error {self.error:.4f}, "
            f"{self.saturated} values saturated"
        )

    def __str__(self) -> str:
        """A table with a row for each weight, and the totals."""
        import io

        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_footer=bool(self.weights), pad_edge=False)
        table.add_column("weight", "total", no_wrap=True)
        table.add_column("shape", justify="right", no_wrap=True)
        table.add_column("precision", no_wrap=True)
        table.add_column("stored as", no_wrap=True)
        table.add_column("bytes", f"{self.nbytes}", justify="right", no_wrap=True)
        table.add_column("error", f"{self.error:.4f}", justify="right", no_wrap=True)
        table.add_column("saturated", f"{self.saturated}", justify="right", no_wrap=True)
        for weight in self.weights:
            error = "" if weight.error is None else f"{weight.error:.4f}"
            shape = "x".join(map(str, weight.shape))
            figures = (str(weight.nbytes), error, str(weight.saturated))
            table.add_row(weight.name, shape, weight.precision, weight.stored, *figures)
        text = io.StringIO()
        Console(file=text, width=240, highlight=False, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
