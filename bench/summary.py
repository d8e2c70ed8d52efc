# SPDX-License-Identifier: Apache-2.0
"""Statistics of a comparison: medians over all repetitions, ratios of the same round, the best peer of a class."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.catalog import OURS, SETS

MEMORY = "rss"  # peak memory of the runs of the set `decode`
METRICS: Mapping[str, str] = {**{name: found.title for name, found in SETS.items()}, MEMORY: "peak RSS MB"}
LOWER_IS_BETTER = frozenset({MEMORY, *(name for name, found in SETS.items() if found.lower_is_better)})


@dataclasses.dataclass(frozen=True)
class Key:
    """What was measured: one row of the table."""

    model: str
    engine: str
    variant: str
    bits: int

    @property
    def title(self) -> str:
        """Engine and variant."""
        return f"{self.engine} {self.variant}"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One metric of one row.

    Attributes:
        rounds: the values of each round.
    """

    rounds: Mapping[int, Sequence[float]]

    @property
    def values(self) -> list[float]:
        """All values."""
        return [value for values in self.rounds.values() for value in values]

    @property
    def median(self) -> float:
        """Over all repetitions of all rounds."""
        return statistics.median(self.values)


Figures = dict[Key, dict[str, Figure]]


def figures(runs: Iterable[Mapping[str, Any]]) -> Figures:
    """Gathers the runs of a comparison into metrics."""
    gathered: dict[Key, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        key = Key(run["model"], run["engine"], run["variant"], run["bits"])
        gathered[key][run["set"]][run["round"]] += run["values"]
        if run["set"] == "decode":
            gathered[key][MEMORY][run["round"]].append(run["peak_bytes"] / 1e6)
    return {
        key: {name: Figure({number: list(values) for number, values in rounds.items()}) for name, rounds in row.items()}
        for key, row in gathered.items()
    }


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A figure of ours over a peer's.

    Attributes:
        mine: our row.
        peer: the peer's row.
        value: median of the rounds' ratios; above 1 is better for speeds, below 1 for memory and seconds.
        low: the smallest round's ratio.
        high: the largest round's ratio.
    """

    mine: Key
    peer: Key
    value: float
    low: float
    high: float


def ratio(found: Figures, metric: str, mine: Key, peer: Key) -> Ratio | None:
    """Compares two rows round by round; None where no round has both."""
    ours, theirs = found[mine].get(metric), found[peer].get(metric)
    if ours is None or theirs is None:
        return None
    each = [
        statistics.median(ours.rounds[number]) / statistics.median(theirs.rounds[number])
        for number in ours.rounds
        if number in theirs.rounds
    ]
    return Ratio(mine, peer, statistics.median(each), min(each), max(each)) if each else None


def best(found: Figures, metric: str, model: str, bits: int | None, *, ours: bool) -> Key | None:
    """The row with the best median of a metric, among ours or the peers'.

    Args:
        found: all figures.
        metric: one of `METRICS`.
        model: the model.
        bits: of the weights; None for any.
        ours: look among ours, or else among the peers'.
    """
    rows = [
        key
        for key, row in found.items()
        if key.model == model and metric in row and (key.engine == OURS) == ours and bits in (None, key.bits)
    ]
    choose = min if metric in LOWER_IS_BETTER else max
    return choose(rows, key=lambda key: found[key][metric].median, default=None)


def wait_share(runs: Iterable[Mapping[str, Any]]) -> float:
    """Median share of the time that measured threads were kept from their cores: how busy the machine was."""
    waits = [wait for run in runs for wait in run.get("waits", ())]
    return statistics.median(waits) if waits else 0.0


def agreement(runs: Sequence[Mapping[str, Any]], model: str) -> dict[tuple[str, str], tuple[int, int]]:
    """By engine and variant: how many of its first greedy tokens are those of the reference, and of how many.

    The reference is transformers in fp32; without it nothing is known.
    """
    tokens = {
        (run["engine"], run["variant"]): run["tokens"]
        for run in runs
        if run["model"] == model and run["set"] == "decode" and run.get("tokens")
    }
    reference = tokens.get(("transformers", "fp32"))
    if reference is None:
        return {}
    return {key: (_common_prefix(found, reference), len(reference)) for key, found in tokens.items()}


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
