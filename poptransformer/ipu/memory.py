# SPDX-License-Identifier: Apache-2.0
"""Bytes on the fullest tile, by category and over time.

Weights are stored as blocks of 16x16 elements, caches as vectors, other parameters as 8-byte words; each kind is dealt
out to the tiles in turn, so a tile holds at most one piece more than another.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from poptransformer.ipu.cost import cost
from poptransformer.ipu.device import Device
from poptransformer.ipu.product import BLOCK
from poptransformer.ipu.segments import Segment
from poptransformer.ipu.work import Cache, Numbers, Op, Weight, Work

CATEGORIES = ("weights", "KV cache", "activations", "partials", "code")
WORD = 8  # bytes that a tile loads at a time


@dataclasses.dataclass(frozen=True)
class Moment:
    """A tile while one node runs.

    Attributes:
        name: the node.
        activations: bytes of values that somebody still reads.
        partials: bytes that the node needs for itself: partial sums and what it receives.
    """

    name: str
    activations: float
    partials: float

    @property
    def total(self) -> float:
        """Bytes that come and go."""
        return self.activations + self.partials


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What an IPU's tiles must hold for some segments; `bytes_per_tile` turns it into bytes.

    Attributes:
        blocks: bytes of a 16x16 block of weights -> how many.
        words: 8-byte words of vectors and scales.
        vectors: bytes of a cached vector -> how many.
        peak: the moment with most bytes that come and go.
        works: distinct work, each with code of its own.
    """

    blocks: Counter[int]
    words: int
    vectors: Counter[int]
    peak: Moment
    works: frozenset[Work]

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.blocks + other.blocks,
            self.words + other.words,
            self.vectors + other.vectors,
            max(self.peak, other.peak, key=lambda moment: moment.total),
            self.works | other.works,
        )

    def bytes_per_tile(self, device: Device, batches: int = 1) -> dict[str, float]:
        """Returns category -> bytes on the fullest tile.

        Args:
            device: the IPU.
            batches: batches whose caches are kept: those in flight in a pipeline.
        """
        weights = sum(math.ceil(count / device.tiles) * size for size, count in self.blocks.items())
        weights += math.ceil(self.words / device.tiles) * WORD
        caches = sum(math.ceil(batches * count / device.tiles) * size for size, count in self.vectors.items())
        code = device.code_bytes + device.code_bytes_per_op * len(self.works)
        values = (weights, caches, self.peak.activations, self.peak.partials, code)
        return {category: float(value) for category, value in zip(CATEGORIES, values, strict=True)}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters, padding included."""
        return sum(count * size for size, count in self.blocks.items()) + self.words * WORD


EMPTY = Footprint(Counter(), 0, Counter(), Moment("", 0.0, 0.0), frozenset())


def footprint(device: Device, segment: Segment, numbers: Numbers, without: Iterable[str] = ()) -> Footprint:
    """Returns what a segment needs.

    Args:
        device: the IPU.
        segment: its nodes.
        numbers: formats.
        without: weights that are there already, such as a tied table.
    """
    skipped = set(without)
    blocks: Counter[int] = Counter()
    words = 0
    for weight in {weight.name: weight for op in segment.ops for weight in op.weights}.values():
        if weight.name not in skipped:
            size, count, extra = _pieces(weight)
            blocks[size] += count
            words += extra
    vectors: Counter[int] = Counter()
    for cache in _distinct_caches(segment.ops):
        vectors[cache.columns * cache.itemsize] += cache.rows
    moments = liveness(device, segment, numbers)
    peak = max(moments, key=lambda moment: moment.total, default=EMPTY.peak)
    works = frozenset(op.work for op in segment.ops if op.work is not None)
    return Footprint(+blocks, words, vectors, peak, works)


def _distinct_caches(ops: Sequence[Op]) -> list[Cache]:
    return [cache for op in ops for cache in op.caches]


def _pieces(weight: Weight) -> tuple[int, int, int]:
    """Bytes of a block, number of blocks, and words beside them."""
    words = math.ceil(weight.scale_bytes / WORD)
    if weight.rows == 1:
        return 0, 0, words + math.ceil(weight.columns * weight.bits / 8 / WORD)
    count = math.ceil(weight.rows / BLOCK) * math.ceil(weight.columns / BLOCK)
    return BLOCK * BLOCK * weight.bits // 8, count, words


def liveness(device: Device, segment: Segment, numbers: Numbers) -> list[Moment]:
    """Returns the bytes of each step of a segment that come and go, on the fullest tile."""
    size = numbers.activation_bytes
    last = {name: index for index, op in enumerate(segment.ops) for name in op.inputs}
    made = {name for op in segment.ops for name, _ in op.outputs}
    outside = {name for name in last if name not in made}
    live = {name: segment.hidden for name in outside} if len(outside) == 1 else dict.fromkeys(outside, 0)
    if outside and len(outside) > 1:
        live[min(outside, key=lambda name: last[name])] = segment.hidden
    moments = []
    for index, op in enumerate(segment.ops):
        if op.work is not None:
            live.update(op.outputs)
            activations = sum(math.ceil(elements / device.tiles) for elements in live.values()) * size
            moments.append(Moment(op.name, activations, cost(device, op.work, numbers).temporary))
        else:  # a view: its output stands for its input
            _rename(live, op, last)
        live = {name: count for name, count in live.items() if last.get(name, -1) > index or name not in last}
    return moments


def _rename(live: dict[str, int], op: Op, last: dict[str, int]) -> None:
    """Lets the outputs of a view take the place of what they show."""
    for name in op.inputs:
        live.pop(name, None)
    live.update(op.outputs)
