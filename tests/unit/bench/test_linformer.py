# SPDX-License-Identifier: Apache-2.0
"""`bench.linformer`: lengths of rows, tables, pictures, and the worker on small sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import linformer, linformer_worker

pytestmark = pytest.mark.unit
SIZES = {"d_model": 16, "nhead": 2, "dim_feedforward": 32}
COMMON: dict[str, Any] = {"n": 24, "layers": 1, "sizes": SIZES, "threads": 1, "projected_dims": 8}
LENGTHS = {0.25: [16, 48, 80, 112, 144, 176, 208, 240], 1.0: [512] * 8}


@pytest.mark.parametrize("fill", [0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
def test_lengths_of_rows(fill: float) -> None:
    lengths = linformer.lengths_of(fill, 8, 512)
    assert sum(lengths) / (8 * 512) == pytest.approx(fill, abs=0.005)
    assert min(lengths) >= 1 and max(lengths) <= 512 and lengths == sorted(lengths)
    assert LENGTHS.get(fill, lengths) == lengths


def test_what_is_compared() -> None:
    assert list(linformer.attentions("training", [128, 256], 128)) == ["full", "full, fused kernel", "k=128"]
    assert list(linformer.attentions("graph", [128, 256], 512)) == ["full", "k=128", "k=256"]


def results() -> dict[str, Any]:
    speeds = {"full": (0.040, 80_000_000), "full, fused kernel": (0.030, 20_000_000), "k=128": (0.020, 10_000_000)}
    attention = [
        {"kind": kind, "n": n, "attention": name, "seconds": seconds * n / 512, "peak_bytes": peak}
        for kind in linformer.KINDS
        for n in (512, 1024)
        for name, (seconds, peak) in speeds.items()
        if kind == "training" or "fused" not in name
    ]
    seconds = {"padded": 0.4, "trimmed": 0.2, "packed": 0.1}
    rows = [
        {"kind": kind, "n": 512, "lengths": linformer.lengths_of(fill, 8, 512), "difference": 1e-6, "seconds": seconds}
        for kind in linformer.KINDS
        for fill in (0.25, 1.0)
    ]
    versions = {"onnxruntime": "1"}
    found = {"cpu": "a CPU", "cores": 2, "load_average": 0.0, "python": "3", "versions": versions}
    return {"machine": found, "sizes": SIZES, "threads": 2, "attention": 2 * attention, "rows": 2 * rows}  # two rounds


def test_report(tmp_path: Path) -> None:
    (tmp_path / "linformer.json").write_text(json.dumps(results()))
    linformer.main(["--report", str(tmp_path / "linformer.json")])
    text = (tmp_path / "linformer.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["512", "k=128", "20.0", "2.00", "1.5", "10.0", "8.0", "1.7"] in lines  # the graph, beside the paper
    assert ["1024", "full, fused kernel", "60.0", "1.33", "20.0", "4.0"] in lines
    row = ["training step, PyTorch", "25%", "400.0", "200.0", "100.0", "2.00", "4.00", "4.00", "1.0e-06"]
    assert row in lines
    for name in ("linformer.png", "linformer_vsl.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("kind", linformer.KINDS)
def test_the_worker(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linformer_worker, "SECONDS", 0.0)
    for projected in (8, None):
        job = {**COMMON, "kind": kind, "batch": 1, "projected_dims": projected}
        found = linformer_worker.attention(job)
        assert found["seconds"] > 0 and found["peak_bytes"] >= 0
    found = linformer_worker.rows({**COMMON, "kind": kind, "lengths": [3, 20, 9]})
    assert found["difference"] <= 2.5e-6 and set(found["seconds"]) == {"padded", "trimmed", "packed"}


def test_a_fill_ratio_beyond_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        linformer.main(["--fills", "1.5"])
    assert "--fills must be above 0 and at most 1, found [1.5]" in capsys.readouterr().err
