# SPDX-License-Identifier: Apache-2.0
"""Divides a model's blocks into stages: dynamic programming over contiguous ranges, exact.

The worst stage is to be as good as can be: the slowest one as fast as possible in a pipeline, and among equally fast
divisions, or without a pipeline, the fullest tile as empty as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from poptransformer.ipu.memory import EMPTY, Footprint
from poptransformer.ipu.plan import Plan, evaluate, hops_of, units_of
from poptransformer.ipu.stage import Replica, Unit, join


class Division:
    """Divides one replica into any number of stages.

    Args:
        replica: the model.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._ranges: dict[tuple[bool, bool], RangeTable] = {}

    def divide(self, stages: int, is_pipelined: bool = False) -> Plan | None:
        """Returns the best division into a number of stages, or None where none fits."""
        limit = self.replica.device.tile_bytes
        tables = [self._range(index, stages) for index in range(stages)]
        batches = stages if is_pipelined else 1
        sizes = {table: table.bytes(batches) for table in dict.fromkeys(tables)}
        fitting = {table: np.where(size <= limit, size, np.inf) for table, size in sizes.items()}
        if is_pipelined:
            times = {table: np.where(size < np.inf, table.cycles, np.inf) for table, size in fitting.items()}
            fastest = bottleneck([times[table] for table in tables])
            if fastest is None:
                return None
            slowest = fastest[0] * (1 + 1e-12)
            fitting = {table: np.where(times[table] <= slowest, size, np.inf) for table, size in fitting.items()}
        found = bottleneck([fitting[table] for table in tables])
        return None if found is None else evaluate(self.replica, found[1], is_pipelined)

    def _range(self, index: int, stages: int) -> RangeTable:
        """Stages in the middle are alike, whatever their number."""
        key = index == 0, index == stages - 1
        if key not in self._ranges:
            self._ranges[key] = RangeTable(self.replica, *key)
        return self._ranges[key]


class RangeTable:
    """Cycles and bytes of a stage for all ranges of blocks `[i, j)`; infinite where it would be too large.

    Args:
        replica: the model.
        is_first: whether the stage has the embedding.
        is_last: whether it is the last one.
    """

    def __init__(self, replica: Replica, is_first: bool, is_last: bool) -> None:
        self.replica = replica
        stages = 1 if is_first and is_last else 3
        index = 0 if is_first else stages - 1 if is_last else 1
        self.ends = units_of(replica, index, stages, 0, 0)
        self.hop = hops_of(replica, index, stages)[0].total
        self.may_be_empty = stages > 1 and (is_first or (is_last and not replica.is_tied))
        count = len(replica.blocks) + 1
        self.cycles, self._fixed = (np.full((count, count), np.inf) for _ in range(2))
        self._vectors: dict[int, np.ndarray] = {}
        self._fill()

    def bytes(self, batches: int) -> np.ndarray:
        """Bytes on the fullest tile with the caches of so many batches."""
        total = self._fixed.copy()
        for size, counts in self._vectors.items():
            total += np.ceil(batches * counts / self.replica.device.tiles) * size
        return total

    def _fill(self) -> None:
        device = self.replica.device
        sums = _BlockSums(self.replica.blocks)
        token, _, ends = join(self.ends)
        blocks = len(self.replica.blocks)
        known: dict[tuple[int, ...], tuple[Footprint, dict[str, float]]] = {}
        for first in range(blocks + 1):
            for end in range(first if self.may_be_empty else first + 1, blocks + 1):
                counts = sums.counts(first, end)
                if counts not in known:
                    needs = ends + sums.needs(counts)
                    known[counts] = needs, needs.bytes_per_tile(device)
                needs, parts = known[counts]
                if sum(parts.values()) > device.tile_bytes:
                    break
                self.cycles[first, end] = token.total + self.hop + sums.cycles(first, end)
                self._fixed[first, end] = sum(parts.values()) - parts["KV cache"]
                for size, count in needs.vectors.items():
                    self._vectors.setdefault(size, np.zeros_like(self.cycles))[first, end] = count


class _BlockSums:
    """Sums over ranges of blocks; equal blocks are counted, not added up."""

    def __init__(self, blocks: Sequence[Unit]) -> None:
        kinds = {id(unit.needs): unit.needs for unit in blocks}
        self._kinds = list(kinds.values())
        ids = list(kinds)
        is_kind = np.array([[id(unit.needs) == kind for kind in ids] for unit in blocks], int)
        self._counts = np.vstack([np.zeros(len(ids), int), is_kind.cumsum(axis=0)])
        self._cycles = np.concatenate([[0.0], np.cumsum([unit.token.total for unit in blocks])])

    def cycles(self, first: int, end: int) -> float:
        return float(self._cycles[end] - self._cycles[first])

    def counts(self, first: int, end: int) -> tuple[int, ...]:
        """How many blocks of each kind are in a range."""
        return tuple((self._counts[end] - self._counts[first]).tolist())

    def needs(self, counts: tuple[int, ...]) -> Footprint:
        """What so many blocks of each kind need."""
        return sum((kind.times(count) for kind, count in zip(self._kinds, counts, strict=True) if count), EMPTY)


def bottleneck(tables: Sequence[np.ndarray]) -> tuple[float, list[int]] | None:
    """Cuts all blocks into as many ranges as there are tables, so that the largest entry is as small as can be.

    Returns:
        The largest entry and the lengths of the ranges; None where every cut has an infinite one.
    """
    worst = tables[0][0]
    choices: list[np.ndarray] = []
    for table in tables[1:]:
        through = np.maximum(worst[:, None], table)
        choices.append(through.argmin(axis=0))
        worst = through.min(axis=0)
    if not np.isfinite(worst[-1]):
        return None
    ends = [len(worst) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    ends.append(0)
    ends.reverse()
    return float(worst[-1]), [end - start for start, end in zip(ends, ends[1:], strict=False)]
