# SPDX-License-Identifier: Apache-2.0
"""Tensor parallel execution: tokens per second, latency of the sums, and a model of what more ranks would give.

    python -m bench.parallel                              # GPT-2's shape with random weights
    python -m bench.parallel --model /data/llama-1.1b --precision int8 --rounds 7

Compares one process of two threads with two ranks of one thread, which are threads or MPI processes (with the extra
`mpi`). All variants take turns in each round; tables show medians. The model of scaling is fitted to one rank and to
the sums alone, and then compared with the two ranks that were measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.make_checkpoint import make_checkpoint
from bench.quiet import quiet_output
from bench.runner import ROOT, describe, machine, table, write_results
from bench.shapes import CONFIGS

SIZES = [1 << 10, 3 << 10, 6 << 10, 24 << 10, 96 << 10, 1 << 20, 4 << 20]
VARIANTS: dict[str, dict[str, Any]] = {
    "1 rank, 1 thread": {"replicas": 1, "threads": 1, "distributed": "threads"},
    "1 rank, 2 threads": {"replicas": 1, "threads": 2, "distributed": "threads"},
    "2 ranks (threads), 1 thread each": {"replicas": 2, "threads": 1, "distributed": "threads"},
    "2 ranks (MPI), 1 thread each": {"replicas": 2, "threads": 1, "distributed": "mpi"},
}


def run(job: Mapping[str, Any], lock: Path | None) -> Any:
    """Runs the worker, under mpiexec where the job says so; returns what it printed."""
    worker = ["-m", "bench.parallel_worker", json.dumps(dict(job))]
    command = [sys.executable, *worker]
    if job["distributed"] == "mpi":
        command = [mpiexec() or "mpiexec", "-n", str(job["replicas"]), sys.executable, "-m", "mpi4py", *worker]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        output = quiet_output(command, lock=lock, cwd=ROOT, environment=environment)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the run {dict(job)} ended with status {error.returncode}:\n{error.stderr}") from error
    return json.loads(output.splitlines()[-1])


def mpiexec() -> str | None:
    """The launcher of this environment, or the system's; None without mpi4py."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def fit_latency(measured: Mapping[str, list[float]]) -> tuple[float, float]:
    """Returns seconds of an empty sum of two ranks, and seconds for each byte: least squares of relative errors."""
    sizes = np.array([float(size) for size in measured])
    seconds = np.array([median for median, _ in measured.values()])
    matrix = np.stack([1 / seconds, sizes / seconds], 1)
    start, per_byte = np.linalg.lstsq(matrix, np.ones(len(sizes)), rcond=None)[0]
    return max(0.0, float(start)), max(0.0, float(per_byte))


def predict(
    one: Mapping[str, float], sums: Mapping[str, float], ranks: int, speed_up: float | None = None
) -> tuple[float, float]:
    """Returns seconds of a token on so many ranks, and the share of communication in it.

    The divided work shrinks with the ranks, the rest stays; each sum takes a start for each doubling of the ranks, and
    every rank reads the values of all others.

    Args:
        one: of one rank: `seconds` of a token and how many of them are `divided`.
        sums: `count` in a token, `bytes` of each, and the fitted `start` and `per_byte` of two ranks.
        ranks: a number of ranks.
        speed_up: of the divided work; by default the number of ranks, as if each had a core and memory of its own.
    """
    if ranks == 1:
        return one["seconds"], 0.0
    each = math.log2(ranks) * sums["start"] + (ranks - 1) * sums["bytes"] * sums["per_byte"]
    talk = sums["count"] * each
    total = one["seconds"] - one["divided"] + one["divided"] / (speed_up or ranks) + talk
    return total, talk / total


def tokens_table(results: Mapping[str, list[dict[str, float]]]) -> str:
    """Tokens per second of each variant."""
    rows = []
    base = results["1 rank, 1 thread"]
    for name, rounds in results.items():
        seconds = [found["seconds"] for found in rounds]
        ratios = [one["seconds"] / two["seconds"] for one, two in zip(base, rounds, strict=True)]
        waited = statistics.median(found["waited"] for found in rounds)
        spread = f"{1 / max(seconds):.1f} to {1 / min(seconds):.1f}"
        speed = f"{1 / statistics.median(seconds):.1f}"
        rows.append([name, speed, spread, f"{statistics.median(ratios):.2f}", f"{waited:.1%}"])
    return table(["variant", "tokens/s", "rounds", "of 1 thread", "waiting"], rows)


def latency_table(latencies: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Microseconds of one sum, by size."""
    names = list(latencies)
    rows = []
    for size in SIZES:
        cells = [latencies[name][str(size)] for name in names]
        rows.append([f"{size / 1024:g} KiB", *(f"{1e6 * median:.1f} ({1e6 * high:.1f})" for median, high in cells)])
    return table(["size", *(f"{name}, us (p90)" for name in names)], rows)


def model_table(
    one: Mapping[str, float], fits: Mapping[str, Mapping[str, float]], measured: Mapping[str, float], two_threads: float
) -> str:
    """What the model says, and what was measured where that could be.

    The two ranks that can be measured share this machine's memory: there, the divided work is as much faster as two
    threads of one rank are.
    """
    rows = []
    for name, sums in fits.items():
        seconds, share = predict(one, sums, 2, one["seconds"] / two_threads)
        found = measured[name]
        cells = [f"{1 / seconds:.1f}", f"{share:.1%}", f"{1 / found:.1f}", f"{seconds / found - 1:+.0%}"]
        rows.append([f"{name}, this machine", "2", *cells])
        for ranks in (2, 4, 8):
            seconds, share = predict(one, sums, ranks)
            rows.append([f"{name}, a core and memory each", str(ranks), f"{1 / seconds:.1f}", f"{share:.1%}", "", ""])
    header = ["ranks that are", "ranks", "predicted tokens/s", "communication", "measured", "time off by"]
    return table(header, rows)


def collectives(model: Path) -> tuple[int, int]:
    """Sums in one token, and bytes of each."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    layers = config.get("n_layer") or config["num_hidden_layers"]
    width = config.get("n_embd") or config["hidden_size"]
    return 2 * layers + 1, 4 * width


def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Runs everything, round by round."""
    is_mpi = mpiexec() is not None
    variants = {name: job for name, job in VARIANTS.items() if is_mpi or job["distributed"] == "threads"}
    common = {"model": str(model), "precision": options.precision, "prompt": 32, "tokens": options.tokens}
    rounds: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(options.rounds):
        for name, job in variants.items():
            rounds[name].append(run({**common, **job, "action": "tokens"}, options.lock))
            print(f"round {number + 1}: {name}: {1 / rounds[name][-1]['seconds']:.1f} tokens/s", file=sys.stderr)
    latencies = {
        kind: run({"action": "latency", "replicas": 2, "distributed": kind, "sizes": SIZES}, options.lock)
        for kind in (("threads", "mpi") if is_mpi else ("threads",))
    }
    divided = run({**common, **VARIANTS["1 rank, 1 thread"], "action": "divided"}, options.lock)
    return {"tokens": rounds, "latency": latencies, "divided": divided}


def report(results: Mapping[str, Any], model: Path) -> str:
    """The tables, and the model of scaling."""
    rounds = results["tokens"]
    medians = {
        name: statistics.median(found["seconds"] for found in found_rounds) for name, found_rounds in rounds.items()
    }
    count, size = collectives(model)
    # The profile makes nodes slower; of its times only the ratio is used.
    share = results["divided"]["divided"] / results["divided"]["nodes"]
    one = {"seconds": medians["1 rank, 1 thread"], "divided": medians["1 rank, 1 thread"] * share}
    fits = {}
    for kind, measured in results["latency"].items():
        start, per_byte = fit_latency(measured)
        fits[kind] = {"count": count, "bytes": size, "start": start, "per_byte": per_byte}
    two = {
        "threads": medians["2 ranks (threads), 1 thread each"],
        "mpi": medians.get("2 ranks (MPI), 1 thread each", 0),
    }
    lines = [f"{share:.1%} of one rank's time is divided; {count} sums of {size} bytes in a token"]
    lines += [
        f"{kind}: a sum of two ranks takes {1e6 * fit['start']:.1f} us + {1e9 * fit['per_byte']:.2f} ns for each byte"
        for kind, fit in fits.items()
    ]
    parts = [
        tokens_table(rounds),
        latency_table(results["latency"]),
        "\n".join(lines),
        model_table(one, fits, two, medians["1 rank, 2 threads"]),
    ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.parallel", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint folder (default: random weights in GPT-2's shape)")
    parser.add_argument("--precision", default="fp16", help="as poptransformer.load takes it (default: fp16)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each run (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--lock", type=Path, help="a file that is locked around each measurement")
    options = parser.parse_args(arguments)
    found = machine()
    with tempfile.TemporaryDirectory(prefix="poptransformer-bench-") as folder:
        model = options.model
        if model is None:
            model = Path(folder) / "gpt2-124m"
            make_checkpoint(model, CONFIGS["gpt2-124m"])
        results = measure(options, model)
        path = write_results("parallel", {"machine": found, "model": str(model), **results})
        print(f"{model.name}, {options.precision}: {describe(found)}\n\n{report(results, model)}\n\n{path}")


if __name__ == "__main__":
    main()
