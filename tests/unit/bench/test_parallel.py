# SPDX-License-Identifier: Apache-2.0
"""The model of scaling and the tables of `bench.parallel`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.parallel import SIZES, VARIANTS, collectives, fit_latency, predict, report

pytestmark = pytest.mark.unit
ONE = {"seconds": 0.010, "divided": 0.009}


def test_the_fit_finds_what_the_times_were_made_of() -> None:
    measured = {str(size): [2e-5 + 1e-9 * size, 0.0] for size in SIZES}
    start, per_byte = fit_latency(measured)
    assert start == pytest.approx(2e-5, rel=1e-6) and per_byte == pytest.approx(1e-9, rel=1e-6)


def test_prediction() -> None:
    sums = {"count": 10, "bytes": 1000, "start": 1e-5, "per_byte": 1e-9}
    assert predict(ONE, sums, 1) == (0.010, 0.0)
    seconds, share = predict(ONE, sums, 4)
    talk = 10 * (2 * 1e-5 + 3 * 1000 * 1e-9)
    assert seconds == pytest.approx(0.001 + 0.009 / 4 + talk) and share == pytest.approx(talk / seconds)
    assert predict(ONE, sums, 2, speed_up=1.5)[0] == pytest.approx(0.001 + 0.006 + 10 * 1.1e-5)


def test_report(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 12, "n_embd": 768}))
    assert collectives(tmp_path) == (25, 3072)
    speeds = dict(zip(VARIANTS, (0.010, 0.006, 0.007, 0.008), strict=True))
    results = {
        "tokens": {name: [{"seconds": seconds, "waited": 0.1}] * 3 for name, seconds in speeds.items()},
        "latency": {kind: {str(size): [1e-5, 2e-5] for size in SIZES} for kind in ("threads", "mpi")},
        "divided": {"divided": 0.9, "nodes": 1.0, "steps": 3},
    }
    text = report(results, tmp_path)
    assert "| 1 rank, 2 threads" in text and "1.67" in text
    assert "90.0% of one rank's time is divided; 25 sums of 3072 bytes in a token" in text
    assert text.count("a core and memory each") == 6 and text.count("this machine") == 2
