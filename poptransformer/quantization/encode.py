# SPDX-License-Identifier: Apache-2.0
"""From a float weight to a packed one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.quantization import layout, native_encoder, search
from poptransformer.quantization.candidates import Candidates, candidates
from poptransformer.quantization.packed import PackedWeight
from poptransformer.quantization.spec import PER_TENSOR, WeightSpec

# Values that are widened to fp32 at a time: a mapped checkpoint needs no second copy in memory.
_CHUNK_VALUES = 1 << 23
_NUMPY_CHUNK_VALUES = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class _Output:
    """Arrays of the packed weight, of all tiles or of a range, and sums of each row."""

    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None
    row_errors: np.ndarray
    row_costs: np.ndarray
    row_saturated: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, int], spec: WeightSpec) -> _Output:
        block, kind = max(spec.block, 0), spec.kind
        tiles = layout.padded(shape[0], layout.TILE) // layout.TILE
        chunks = layout.padded_depth(shape[1], block) // layout.CHUNK
        per_scale = (tiles, layout.blocks_per_row(shape[1], block), layout.TILE)
        return cls(
            np.empty((tiles, chunks, kind.bits, layout.TILE, 4), np.uint8),
            np.empty(per_scale, kind.scale_dtype),
            None if spec.symmetric else np.empty(per_scale, np.float16),
            np.zeros(shape[0], np.float64),
            np.zeros(shape[0], np.float64),
            np.zeros(shape[0], np.int64),
        )

    def part(self, rows: slice) -> _Output:
        """The part for some rows, which begin with a tile."""
        tiles = slice(rows.start // layout.TILE, -(-rows.stop // layout.TILE))
        sums = (array[rows] for array in (self.row_errors, self.row_costs, self.row_saturated))
        offsets = None if self.offsets is None else self.offsets[tiles]
        return _Output(self.codes[tiles], self.scales[tiles], offsets, *sums)


def encode(
    weight: np.ndarray, spec: WeightSpec, importance: np.ndarray | None = None, name: str = "the weight"
) -> PackedWeight:
    """Quantizes a weight and packs it.

    Args:
        weight: `[N, K]`, any float dtype, any strides; views of mapped files are read in pieces.
        spec: format, block and how scales are chosen.
        importance: `[K]`, the mean squared input of each column: weighs the errors in the search for scales.
        name: what errors call the weight.

    Raises:
        ConfigError: the weight is no matrix of floats, holds NaN or infinity, or `importance` does not fit.
    """
    weight = _checked_weight(weight, name)
    importance = _checked_importance(importance, weight.shape[1], name)
    job = _Job(weight, spec, importance, name)
    tried = candidates(spec)
    if spec.block == PER_TENSOR:
        base = job.best_base(tried)
        output = job.run(dataclasses.replace(tried, values=np.ones(1, np.float32)), base)
    else:
        output = job.run(tried, None)
    rows, depth = weight.shape
    return PackedWeight(
        spec.format,
        rows,
        depth,
        max(spec.block, 0),
        output.codes,
        output.scales,
        output.offsets,
        int(output.row_saturated.sum()),
        _relative(float(output.row_errors.sum()), job.square),
    )


def _relative(error: float, square: float) -> float:
    """The root of a sum of squares relative to another; infinite where numbers are too large to be squared."""
    if not math.isfinite(error) or not math.isfinite(square):
        return math.inf
    return math.sqrt(error / square) if square else 0.0


class _Job:
    """One weight on its way through the encoder."""

    def __init__(self, weight: np.ndarray, spec: WeightSpec, importance: np.ndarray | None, name: str) -> None:
        self.weight = weight
        self.spec = spec
        self.importance = importance
        self.name = name
        self.is_native = native_encoder.available()
        self.square = 0.0

    def run(self, tried: Candidates, base: float | None) -> _Output:
        """Encodes the weight with the best of some candidates."""
        output = _Output.empty(self.weight.shape, self.spec)
        self.square = 0.0
        for rows, values in self._chunks():
            part = output.part(rows)
            encode_rows = native_encoder.encode_rows if self.is_native else _encode_rows
            encode_rows(values, self.spec, self.importance, tried, base, part)
            with np.errstate(over="ignore"):
                self.square += float(np.vdot(values, values))
        return output

    def best_base(self, tried: Candidates) -> float:
        """Returns the one scale of the whole weight."""
        amax = max((float(np.abs(values).max()) for _, values in self._chunks() if values.size), default=0.0)
        start = np.array([amax], np.float32) / np.float32(tried.end_divisor)
        if self.spec.power_of_two:
            start = search.power_of_two(start)
        bases = start * tried.values
        if len(bases) == 1:
            return float(bases[0])
        one = dataclasses.replace(tried, values=np.ones(1, np.float32))
        costs = [self.run(one, float(base)).row_costs.sum() for base in bases]
        return float(bases[int(np.argmin(costs))])

    def _chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields ranges of rows and their values, fp32 in C order."""
        rows, depth = self.weight.shape
        values = _CHUNK_VALUES if self.is_native else _NUMPY_CHUNK_VALUES
        step = max(1, values // max(depth, 1) // layout.TILE) * layout.TILE
        if self.is_native and self.weight.dtype == np.float32 and self.weight.flags.c_contiguous:
            step = layout.padded(max(rows, 1), layout.TILE)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            chunk = np.ascontiguousarray(self.weight[part], np.float32)
            self._check_finite(chunk, start)
            yield part, chunk

    def _check_finite(self, values: np.ndarray, first_row: int) -> None:
        if np.isfinite(values).all():
            return
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ConfigError(
            f"{self.name} holds {values[row, column]} in row {first_row + row}, column {column}, which no quantized "
            "format can store. Repair the checkpoint, or keep this weight in fp32."
        )


def _encode_rows(
    values: np.ndarray,
    spec: WeightSpec,
    importance: np.ndarray | None,
    tried: Candidates,
    base: float | None,
    output: _Output,
) -> None:
    """Encodes rows with NumPy."""
    rows, depth = values.shape
    block = spec.block if spec.block > 0 else layout.padded(depth, layout.CHUNK)
    padding = -depth % block

    def columns_first(array: np.ndarray) -> np.ndarray:  # [R, K] to [n, R, Kb]
        blocks = np.pad(array, ((0, 0), (0, padding))).reshape(len(array), -1, block)
        return np.ascontiguousarray(blocks.transpose(2, 0, 1))

    real = columns_first(np.ones((1, depth), np.float32))
    weights = real if importance is None else columns_first(importance[None])
    blocks = search.Blocks(columns_first(values), weights, real, spec.kind, not spec.symmetric, spec.power_of_two)
    encoded = search.encode_blocks(blocks, tried, base)
    codes = encoded.codes.transpose(1, 2, 0).reshape(rows, -1)
    output.codes[:] = layout.tile_codes(codes, spec.kind.bits, spec.kind.zero, max(spec.block, 0))
    output.scales[:] = layout.tile_scales(encoded.scale)
    if output.offsets is not None and encoded.offset is not None:
        output.offsets[:] = layout.tile_scales(encoded.offset)
    output.row_errors[:] = encoded.row_errors
    output.row_costs[:] = encoded.row_costs
    output.row_saturated[:] = encoded.row_saturated


def _checked_weight(weight: np.ndarray, name: str) -> np.ndarray:
    weight = np.asarray(weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ConfigError(f"Only matrices can be quantized, found {name} of shape {list(weight.shape)}.")
    if not (np.issubdtype(weight.dtype, np.floating) or weight.dtype.name.startswith(("bfloat", "float"))):
        raise ConfigError(f"Only floats can be quantized, found {name} of dtype {weight.dtype}.")
    return weight


def _checked_importance(importance: np.ndarray | None, depth: int, name: str) -> np.ndarray | None:
    if importance is None:
        return None
    if importance.shape != (depth,):
        raise ConfigError(
            f"The importance of {name}'s columns must have shape [{depth}], found {list(importance.shape)}."
        )
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ConfigError(f"The importance of {name}'s columns must be finite and not negative.")
    # Around one, sums neither overflow nor vanish.
    mean = float(np.mean(importance, dtype=np.float64))
    return np.ascontiguousarray(importance / mean if mean else np.ones(depth), np.float32)
