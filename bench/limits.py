# SPDX-License-Identifier: Apache-2.0
"""The machine's limits, measured by `limits.cpp` (`make limits` compiles it)."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.quiet import quiet_output
from bench.runner import ROOT

PROGRAM = ROOT / "custom_ops" / "build" / "limits"
MEBIBYTES, REPEATS = 512, 3


def measure_limits(threads: int, lock: Path | None) -> dict[str, Any] | None:
    """What `limits` prints for 1 to `threads` threads; None where it was not compiled."""
    if not PROGRAM.exists():
        return None
    command = [str(PROGRAM), str(MEBIBYTES), str(REPEATS), str(threads)]
    found: dict[str, Any] = json.loads(quiet_output(command, lock=lock))
    return found


@dataclasses.dataclass(frozen=True)
class Limits:
    """Medians over the rounds, for the threads that were used.

    Attributes:
        streams: read GB/s by the number of concurrent streams per thread.
        fma: fp32 GFLOP/s.
        int8: int8 GOP/s, a multiply-add counting as two.
    """

    streams: Mapping[int, float]
    fma: float
    int8: float

    @property
    def read(self) -> float:
        """Read GB/s by the best number of streams."""
        return max(self.streams.values())


def summarize(measured: Sequence[Mapping[str, Any]], threads: int) -> Limits | None:
    """The medians of what `measure_limits` returned in each round, or None if it was never compiled."""
    rounds = [found["threads"][str(threads)] for found in measured]
    if not rounds:
        return None
    streams = rounds[0]["read_gb_s"]
    return Limits(
        {int(count): statistics.median(found["read_gb_s"][count] for found in rounds) for count in streams},
        statistics.median(found["fma_gflop_s"] for found in rounds),
        statistics.median(found["int8_gop_s"] for found in rounds),
    )
