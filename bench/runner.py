# SPDX-License-Identifier: Apache-2.0
"""Starts measured runs, watches their memory from outside, and says what machine they ran on."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.phases import memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
POLL_SECONDS = 0.01


def run_model(**job: Any) -> dict[str, Any]:
    """Runs `bench.run_model` with `job` in a new process.

    Returns:
        What it printed, and the highest `anon_bytes` and `file_bytes` seen from outside (polled, so a little low;
        `peak_bytes` is the kernel's own, exact).

    Raises:
        SystemExit: the run failed.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+") as output:
        job["started"] = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.run_model", json.dumps(job)], stdout=output, env=environment
        )
        try:
            highest = _watch(process)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"the run {job} ended with status {process.returncode}")
    return {**json.loads(text.splitlines()[-1]), **highest}


def _watch(process: subprocess.Popen[bytes]) -> dict[str, int]:
    highest = {"anon_bytes": 0, "file_bytes": 0}
    while process.poll() is None:
        try:
            now = memory(process.pid)
        except OSError:
            break
        # Until exec has replaced the copy of this process, and once it has ended, there is nothing to see.
        highest = {name: max(value, now.get(name, 0)) for name, value in highest.items()}
        time.sleep(POLL_SECONDS)
    process.wait()
    return highest


def machine() -> dict[str, Any]:
    """Processor, versions and load, for whoever compares figures later."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("onnxruntime", "onnx-ir", "onnxscript", "numpy")
        },
    }


def describe(found: dict[str, Any]) -> str:
    """One line about the machine; says so where it is busy with something else."""
    busy = "; BUSY, times are worth little" if found["load_average"] > 0.5 * found["cores"] else ""
    return (
        f"{found['cpu']}, {found['cores']} cores, load {found['load_average']}{busy}; Python {found['python']}, "
        f"onnxruntime {found['versions']['onnxruntime']}"
    )


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Writes `bench/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; all columns but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        aligned = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])
