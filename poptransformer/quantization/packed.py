# SPDX-License-Identifier: Apache-2.0
"""`PackedWeight`: a quantized weight in the layout that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poptransformer.errors import PopTransformerError
from poptransformer.quantization import layout
from poptransformer.quantization.formats import Format, code_values, format_of


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `[N, K]`, N outputs and K inputs, of 4 or 8 bits.

    Attributes:
        format: `int4`, `int8`, `e4m3fn`, `e5m2`, `e4m3fnuz` or `e5m2fnuz`.
        columns: N.
        depth: K.
        block: columns that share a scale; 0 is a whole row.
        codes: uint8 `[Nt, Kt, 8 or 4, 16, 4]`, see `layout`.
        scales: `[Nt, Kb, 16]`, fp16 for int4 and int8, fp32 for fp8.
        offsets: fp16 `[Nt, Kb, 16]`, of asymmetric int4.
        saturated: values beyond the format's range, which became its largest or smallest.
        error: root of the mean squared difference to the original, relative to the original's root mean square; 0 for
            weights that were taken as a checkpoint packs them.
    """

    format: str
    columns: int
    depth: int
    block: int
    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None
    saturated: int = 0
    error: float = 0.0

    def __post_init__(self) -> None:
        tiles = layout.padded(self.columns, layout.TILE) // layout.TILE
        chunks = layout.padded_depth(self.depth, self.block) // layout.CHUNK
        per_scale = (tiles, layout.blocks_per_row(self.depth, self.block), layout.TILE)
        self._check("codes", self.codes, np.dtype(np.uint8), (tiles, chunks, self.kind.bits, layout.TILE, 4))
        self._check("scales", self.scales, self.kind.scale_dtype, per_scale)
        if self.offsets is not None:
            self._check("offsets", self.offsets, np.dtype(np.float16), per_scale)

    def _check(self, name: str, array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        if array.dtype != dtype or array.shape != shape:
            raise PopTransformerError(
                f"The {name} of a packed {self.format} weight [{self.columns}, {self.depth}] with block {self.block} "
                f"must be {dtype}{list(shape)}, found {array.dtype}{list(array.shape)}."
            )

    @classmethod
    def from_rows(
        cls,
        format: str,
        codes: np.ndarray,
        scales: np.ndarray,
        offsets: np.ndarray | None = None,
        *,
        block: int,
        saturated: int = 0,
        error: float = 0.0,
    ) -> PackedWeight:
        """Packs codes that lie in rows.

        Args:
            format: as in the class.
            codes: uint8 `[N, K]`, one code each.
            scales: `[N, Kb]`, rounded to the type that the format stores.
            offsets: `[N, Kb]` or None.
            block: columns that share a scale; 0 is a whole row.
            saturated: see the class.
            error: see the class.
        """
        kind = format_of(format)
        rows, depth = codes.shape
        return cls(
            format,
            rows,
            depth,
            block,
            layout.tile_codes(codes, kind.bits, kind.zero, block),
            layout.tile_scales(scales.astype(kind.scale_dtype)),
            None if offsets is None else layout.tile_scales(offsets.astype(np.float16)),
            saturated,
            error,
        )

    @property
    def kind(self) -> Format:
        """The format's description."""
        return format_of(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def dequantize(self) -> np.ndarray:
        """Returns the values, fp32 `[N, K]`, each rounded once after the product and once after the sum."""
        codes = layout.untile_codes(self.codes, self.columns, self.depth)
        values = code_values(self.format, self.offsets is not None)[codes]
        values *= self._per_column(self.scales)
        if self.offsets is not None:
            values += self._per_column(self.offsets)
        return values

    def _per_column(self, tiles: np.ndarray) -> np.ndarray:
        """Scales or offsets as fp32, one for each column, `[N, K]`, or `[N, 1]` where a block is a whole row."""
        rows = layout.untile_scales(tiles, self.columns).astype(np.float32)
        return rows if self.block <= 0 else np.repeat(rows, self.block, axis=1)[:, : self.depth]
