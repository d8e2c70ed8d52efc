# SPDX-License-Identifier: Apache-2.0
"""Bytes on the fullest tile, by category and over time.

Weights are stored as blocks of 16x16 elements, caches as vectors, other parameters as 8-byte words; each kind is dealt
out to the tiles in turn, so a tile holds at most one piece more than another.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable

from poptransformer.ipu.cost import cost
from poptransformer.ipu.device import Device
from poptransformer.ipu.product import BLOCK
from poptransformer.ipu.segments import Segment
from poptransformer.ipu.work import Numbers, Weight, Work

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

    def times(self, count: int) -> Footprint:
        """The same segment `count` times, its code once."""
        blocks = Counter({size: number * count for size, number in self.blocks.items()})
        vectors = Counter({size: number * count for size, number in self.vectors.items()})
        return dataclasses.replace(self, blocks=blocks, words=self.words * count, vectors=vectors)

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
    for cache in (cache for op in segment.ops for cache in op.caches):
        vectors[cache.columns * cache.itemsize] += cache.rows
    moments = liveness(device, segment, numbers)
    peak = max(moments, key=lambda moment: moment.total, default=EMPTY.peak)
    works = frozenset(op.work for op in segment.ops if op.work is not None)
    return Footprint(+blocks, words, vectors, peak, works)


def _pieces(weight: Weight) -> tuple[int, int, int]:
    """Bytes of a block, number of blocks, and words beside them."""
    words = math.ceil(weight.scale_bytes / WORD)
    if weight.rows == 1:
        return 0, 0, words + math.ceil(weight.columns * weight.bits / 8 / WORD)
    count = math.ceil(weight.rows / BLOCK) * math.ceil(weight.columns / BLOCK)
    return BLOCK * BLOCK * weight.bits // 8, count, words


def liveness(device: Device, segment: Segment, numbers: Numbers) -> list[Moment]:
    """Returns the bytes of each step of a segment that come and go, on the fullest tile.

    A value lives from the node that makes it to the last that reads it; what leaves the segment lives to its end.
    """
    last = {name: index for index, op in enumerate(segment.ops) for name in op.inputs}
    live = dict(segment.given)
    moments = []
    for index, op in enumerate(segment.ops):
        live.update(op.outputs)
        if op.work is not None:
            share = sum(math.ceil(elements / device.tiles) for elements in live.values())
            temporary = cost(device, op.work, numbers).temporary
            moments.append(Moment(op.name, float(share * numbers.activation_bytes), temporary))
        live = {name: elements for name, elements in live.items() if last.get(name, index + 1) > index}
    return moments
