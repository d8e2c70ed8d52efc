# SPDX-License-Identifier: Apache-2.0
"""Cycles of attention over a cache: queries divided among the tiles, or keys where there are few queries."""

from __future__ import annotations

import dataclasses
import math

from poptransformer.ipu.cycles import Cycles
from poptransformer.ipu.device import Device
from poptransformer.ipu.product import BLOCK, MATH_BYTES
from poptransformer.ipu.work import Attention, Numbers


def attention_cost(device: Device, work: Attention, numbers: Numbers) -> Cycles:
    """Returns the cycles of the cheaper way."""
    return min(by_queries(device, work, numbers), by_keys(device, work, numbers), key=lambda cycles: cycles.total)


def by_queries(device: Device, work: Attention, numbers: Numbers) -> Cycles:
    """Each tile has some rows of queries of one head; keys and values go to all tiles of the head, block by block.

    Source: the scheme of osmarks/ipu-stack's FlashAttention.
    """
    heads = work.batch * work.heads
    tiles = max(1, device.tiles // heads)
    rows = math.ceil(work.tokens / tiles) * math.ceil(heads / device.tiles)
    depth = math.ceil(work.head_dim / BLOCK) * BLOCK
    keys = math.ceil(work.slots / BLOCK) * BLOCK
    blocks = 2 * (depth // BLOCK) * (keys // BLOCK)
    compute = device.amp_factor * blocks * _block_cycles(device, numbers, rows)
    compute += rows * keys * device.softmax_cycles
    moved = 2 * keys * depth * numbers.cache_bytes
    shared = device.exchange_paired_bytes if tiles > 1 else device.exchange_bytes
    room = device.memory_proportion * device.tile_bytes
    steps = math.ceil(moved / room)
    exchange = moved / shared + steps * device.fragment_cycles
    temporary = moved / steps + rows * depth * 4
    return Cycles(compute, exchange, steps * device.sync_cycles, temporary=temporary, how=f"queries, {rows} a tile")


def by_keys(device: Device, work: Attention, numbers: Numbers) -> Cycles:
    """Keys and values stay where they are; queries come to them, and partial results are summed up."""
    groups = work.batch * work.kv_heads
    splits = max(1, min(device.tiles // groups, work.slots))
    slots = math.ceil(work.slots / splits) * math.ceil(groups / device.tiles)
    rows = work.tokens * work.heads // work.kv_heads
    nbytes = 2 * slots * work.head_dim * numbers.cache_bytes
    amp = device.amp_factor * math.ceil(slots / BLOCK) * 2 * math.ceil(work.head_dim / BLOCK)
    products = min(rows * nbytes / device.gemv_bytes, amp * _block_cycles(device, numbers, rows))
    compute = products + rows * slots * device.softmax_cycles + device.launch_cycles
    queries = rows * work.head_dim * numbers.activation_bytes
    partials = rows * (work.head_dim + 2) * 4  # with maximum and sum of each row, in fp32
    moved = queries / device.exchange_paired_bytes + partials / device.exchange_bytes
    added = math.ceil(partials / device.copy_bytes)
    return Cycles(
        compute + added,
        moved + 3 * device.fragment_cycles,
        3 * device.sync_cycles,
        temporary=queries + 2 * partials,
        how=f"keys, {slots} a tile",
    )


def _block_cycles(device: Device, numbers: Numbers, rows: int) -> float:
    """Cycles of the matrix unit for one 16x16 block of keys or values."""
    feed = device.amp_feed_standard_cycles * (device.amp_fp32_feed_factor if numbers.math == "fp32" else 1)
    return 2 * BLOCK * BLOCK / device.amp_flops(numbers.math) * rows + feed


def cache_itemsize(math_type: str) -> int:
    """Bytes of an element of a cache in the formats of `math_type`."""
    return MATH_BYTES[math_type]


def with_slots(work: Attention, slots: int) -> Attention:
    """The same attention over another number of slots."""
    return dataclasses.replace(work, slots=slots)
