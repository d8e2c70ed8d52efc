# SPDX-License-Identifier: Apache-2.0
"""Cycles of a matrix product: the cheapest of all grids and kernels.

A grid cuts rows, columns and depth into `gm x gn x gk` parts, one for each tile. Weights lie where they are used; they
travel where rows are cut, and partial sums where the depth is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

from poptransformer.ipu.cycles import Cycles
from poptransformer.ipu.device import Device
from poptransformer.ipu.work import Numbers, Product

BLOCK = 16  # rows and columns of a block of weights in the matrix unit
MATH_BYTES = {"fp32": 4, "fp16": 2, "fp8": 1}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Parts of rows, columns and depth, and the steps that the depth of a tile is worked off in; 0 as few as fit."""

    rows: int
    columns: int
    depth: int = 1
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}"


@functools.cache
def product_cost(device: Device, work: Product, numbers: Numbers) -> Cycles:
    """Returns the cycles of the best grid and kernel."""
    tiles = max(1, device.tiles // work.groups)
    rounds = math.ceil(work.groups / device.tiles)
    options = (grid_cost(device, work, numbers, grid) for grid in _grids(work, tiles))
    best = min(options, key=lambda cycles: cycles.total)
    return best if rounds == 1 else dataclasses.replace(best.times(rounds), how=best.how)


def _grids(work: Product, tiles: int) -> Iterator[Grid]:
    """Cuts of rows and depth by powers of two and 23 times those (1472 is 23 * 64); columns take what remains."""
    sizes = sorted(size << shift for size in (1, 23) for shift in range(12) if size << shift <= tiles)
    depth_blocks = math.ceil(work.depth / _depth_block(work.math))
    column_blocks = math.ceil(work.columns / BLOCK)
    for rows in sizes:
        if rows > work.rows:
            break
        for depth in sizes:
            if depth > depth_blocks or rows * depth > tiles:
                break
            yield Grid(rows, min(column_blocks, tiles // (rows * depth)), depth)


def _depth_block(math_type: str) -> int:
    """Inputs that the matrix unit takes at a time."""
    return 32 if math_type == "fp8" else 16


@dataclasses.dataclass(frozen=True)
class _Part:
    """What the fullest tile of a grid holds: m rows, n columns, k of the depth; bytes that must come to it."""

    m: int
    n: int
    k: int
    activations: float
    weights: float
    partials: float


def _part(work: Product, numbers: Numbers, grid: Grid) -> _Part:
    m = math.ceil(work.rows / grid.rows)
    n = math.ceil(math.ceil(work.columns / BLOCK) / grid.columns) * BLOCK
    block = _depth_block(work.math)
    k = math.ceil(math.ceil(work.depth / block) / grid.depth) * block
    input_bytes = min(numbers.activation_bytes, MATH_BYTES[work.math])
    moving = grid.rows > 1 or not work.weight_bits
    weight_bits = work.weight_bits or 8 * numbers.activation_bytes
    return _Part(m, n, k, m * k * input_bytes, moving * n * k * weight_bits / 8, m * n * numbers.partial_bytes)


def grid_cost(device: Device, work: Product, numbers: Numbers, grid: Grid) -> Cycles:
    """Returns the cycles of one grid, by the better of both kernels.

    Args:
        device: the IPU.
        work: the product.
        numbers: formats of activations and partial sums.
        grid: how it is cut.
    """
    part = _part(work, numbers, grid)
    room = max(1.0, device.memory_proportion * device.tile_bytes - part.partials)
    steps = grid.steps or math.ceil((part.activations + part.weights) / room)
    exchange, phases = _exchange(device, grid, part, steps)
    compute, kernel = _compute(device, work, part, steps)
    if grid.depth > 1:
        compute += part.partials / device.copy_bytes + device.launch_cycles
    temporary = part.partials + (part.activations + part.weights) / steps
    how = f"{kernel} {grid}" + (f", {steps} steps" if steps > 1 else "")
    return Cycles(compute, exchange, phases * device.sync_cycles, temporary=temporary, how=how)


def exchange_cycles(device: Device, work: Product, numbers: Numbers, grid: Grid, order: str) -> float:
    """Returns the cycles of a grid's exchange, syncs included.

    Args:
        device: the IPU.
        work: the product.
        numbers: formats of activations and partial sums.
        grid: how it is cut.
        order: what the two tiles of a pair share: `columns` (weights) or `rows` (activations).
    """
    moved, phases = _exchange(device, grid, _part(work, numbers, grid), max(1, grid.steps), (order,))
    return moved + phases * device.sync_cycles


def _exchange(
    device: Device, grid: Grid, part: _Part, steps: int, orders: Sequence[str] = ("columns", "rows")
) -> tuple[float, int]:
    """Cycles on the exchange, and its phases. A pair of tiles shares rows or columns, whichever saves more."""
    single, paired = device.exchange_bytes, device.exchange_paired_bytes
    shared = {
        "columns": part.activations / single + part.weights / (paired if grid.rows > 1 else single),
        "rows": part.activations / (paired if grid.columns > 1 else single) + part.weights / single,
    }
    moved = min(shared[order] for order in orders)
    fragments = steps * (2 if part.weights else 1)
    phases = steps
    if grid.depth > 1:
        moved += part.partials * (grid.depth - 1) / grid.depth / single
        fragments += 1
        phases += 1
    return moved + fragments * device.fragment_cycles, phases


def _compute(device: Device, work: Product, part: _Part, steps: int) -> tuple[float, str]:
    """Cycles of the better kernel: the matrix unit, or dot products straight from memory."""
    size = MATH_BYTES[work.math]
    unpack = 0.0
    if 0 < work.weight_bits < 8 * size:
        unpack = part.n * part.k * size / device.copy_bytes + device.copy_call_cycles
    feed = device.amp_feed_standard_cycles * (device.amp_fp32_feed_factor if work.math == "fp32" else 1)
    per_row = 2 * BLOCK * _depth_block(work.math) / max(1, device.amp_flops(work.math))
    blocks = part.n // BLOCK * (part.k // _depth_block(work.math))
    amp = device.amp_factor * (blocks * (per_row * part.m + feed) + steps * device.amp_call_cycles)
    gemv_size = max(size, 2)  # there are no dot products of 8-bit floats
    widen = part.n * part.k * gemv_size / device.copy_bytes if gemv_size > size else 0.0
    gemv = part.m * part.n * part.k * gemv_size / device.gemv_bytes + widen + steps * device.launch_cycles
    return (amp + unpack, f"AMP {work.math}") if amp <= gemv else (gemv + unpack, "dot products")
