# SPDX-License-Identifier: Apache-2.0
"""`Cycles`: where the time of a step goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

KINDS = ("compute", "exchange", "sync", "link")


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Cycles of an IPU, by what they are spent on.

    Attributes:
        compute: of the busiest tile.
        exchange: data between the tiles of an IPU.
        sync: waiting for all tiles.
        link: data between IPUs or with the host, syncs of several IPUs included.
        temporary: bytes that the work needs on the fullest tile beside its inputs and outputs.
        how: the plan that was chosen, for people.
    """

    compute: float = 0.0
    exchange: float = 0.0
    sync: float = 0.0
    link: float = 0.0
    temporary: float = 0.0
    how: str = ""

    @property
    def total(self) -> float:
        """All cycles: phases follow each other."""
        return self.compute + self.exchange + self.sync + self.link

    @property
    def bound(self) -> str:
        """`compute` where arithmetic takes most of the time; otherwise what takes most of the rest."""
        waiting = self.exchange + self.sync + self.link
        return "compute" if self.compute >= waiting else max(KINDS[1:], key=lambda kind: getattr(self, kind))

    def parts(self) -> dict[str, float]:
        """Cycles by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def __add__(self, other: Cycles) -> Cycles:
        return Cycles(
            self.compute + other.compute,
            self.exchange + other.exchange,
            self.sync + other.sync,
            self.link + other.link,
            max(self.temporary, other.temporary),
        )

    def times(self, count: float) -> Cycles:
        """The same work `count` times."""
        return Cycles(self.compute * count, self.exchange * count, self.sync * count, self.link * count, self.temporary)


FREE = Cycles()


def total(parts: Iterable[Cycles]) -> Cycles:
    """The sum of work done one after the other."""
    result = FREE
    for part in parts:
        result += part
    return result
