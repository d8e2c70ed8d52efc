# SPDX-License-Identifier: Apache-2.0
"""When each rank worked on what: to see whether pipeline stages overlap."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Event:
    """One segment of one micro-batch on one rank.

    Attributes:
        rank: number of the rank.
        stage: its pipeline stage.
        segment: which segment of the graph.
        micro_batch: which rows.
        start: `time.perf_counter` when it had its inputs, in seconds.
        end: when it was done.
    """

    rank: int
    stage: int
    segment: int
    micro_batch: int
    start: float
    end: float


def overlap(events: Iterable[Event]) -> float:
    """Returns the share of the busy time in which two stages or more are at work."""
    edges = sorted(
        (time, change, event.stage) for event in events for time, change in ((event.start, 1), (event.end, -1))
    )
    busy = shared = 0.0
    active: dict[int, int] = {}
    before = 0.0
    for time, change, stage in edges:
        stages = sum(count > 0 for count in active.values())
        busy += (time - before) * (stages > 0)
        shared += (time - before) * (stages > 1)
        active[stage] = active.get(stage, 0) + change
        before = time
    return shared / busy if busy else 0.0


def write_timeline(events: Iterable[Event], path: Path) -> None:
    """Writes events in Chrome's trace format, which https://ui.perfetto.dev and chrome://tracing show."""
    rows = [
        {
            "name": f"micro-batch {event.micro_batch}",
            "cat": f"segment {event.segment}",
            "ph": "X",
            "pid": event.stage,
            "tid": event.rank,
            "ts": 1e6 * event.start,
            "dur": 1e6 * (event.end - event.start),
        }
        for event in sorted(events, key=lambda event: event.start)
    ]
    path.write_text(json.dumps({"traceEvents": rows}, indent=1) + "\n", encoding="utf-8")
