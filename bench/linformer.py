# SPDX-License-Identifier: Apache-2.0
"""Linformer beside full attention over sequence lengths, and rows without padding beside padded ones over fill ratios.

    python -m bench.linformer                                          # about five minutes on two cores
    python -m bench.linformer --lengths 8192 --projected_dims 128 --fills
    python -m bench.linformer --report bench/results/linformer.json    # tables and pictures anew

Both are measured as a training step in PyTorch (forward, backward, AdamW) and as the ONNX graph. Every configuration
is a process of its own, so that the peak of memory is that configuration's. Padded, trimmed and packed rows take turns
in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.linformer_plot import plot_attention, plot_rows
from bench.quiet import quiet_output
from bench.runner import RESULTS, ROOT, describe, machine, table, write_results

KINDS = {"training": "training step, PyTorch", "graph": "inference, ONNX graph"}
SIZES = {"d_model": 256, "nhead": 4, "dim_feedforward": 1024}
PAPERS_KIND = "graph"
# k -> n -> faster, and more rows in the same memory: arXiv 2006.04768, table 3, inference on a V100 of 16 GB.
PAPER: dict[int, dict[int, tuple[float, float]]] = {
    128: {
        **{512: (1.5, 1.7), 1024: (1.7, 3.0), 2048: (2.6, 6.1), 4096: (3.4, 14), 8192: (5.5, 28)},
        **{16384: (8.6, 56), 32768: (13, 56), 65536: (20, 60)},
    },
    256: {
        **{512: (1.3, 1.5), 1024: (1.6, 2.9), 2048: (2.4, 5.6), 4096: (3.2, 13), 8192: (5.0, 26)},
        **{16384: (7.8, 48), 32768: (12, 48), 65536: (18, 52)},
    },
}
PAPERS_SOURCE = (
    "Paper: Wang et al. 2020, [arXiv 2006.04768](https://arxiv.org/abs/2006.04768), table 3: inference on a V100 of "
    "16 GB; memory as rows of a batch that fit."
)
WAYS = ("padded", "trimmed", "packed")
FULL, FUSED = "full", "full, fused kernel"


def lengths_of(fill: float, rows: int, n: int) -> list[int]:
    """Lengths of rows, evenly spread, as widely as the share of valid tokens allows."""
    spread = min(fill, 1 - fill) * n
    low, high = fill * n - spread, fill * n + spread
    return [max(1, round(low + (high - low) * (row + 0.5) / rows)) for row in range(rows)]


def attentions(kind: str, projected_dims: Sequence[int], n: int) -> dict[str, dict[str, Any]]:
    """What is compared, by name."""
    found: dict[str, dict[str, Any]] = {FULL: {"projected_dims": None}}
    if kind == "training":  # the graph has one form of attention
        found[FUSED] = {"projected_dims": None, "kernel": "fast_attention"}
    return found | {f"k={k}": {"projected_dims": k} for k in projected_dims if k <= n}


def run(job: Mapping[str, Any]) -> Any:
    """Runs the worker; returns what it printed."""
    command = [sys.executable, "-m", "bench.linformer_worker", json.dumps(dict(job))]
    try:
        output = quiet_output(command, cwd=ROOT, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the run {dict(job)} ended with status {error.returncode}:\n{error.stderr}") from error
    return json.loads(output.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Runs everything; each entry is a run."""
    common = {"sizes": SIZES, "threads": options.threads}
    found: dict[str, list[dict[str, Any]]] = {"attention": [], "rows": []}
    for _ in range(options.rounds):
        for kind in KINDS:
            for n in options.lengths:
                for name, more in attentions(kind, options.projected_dims, n).items():
                    job = {"what": "attention", "kind": kind, "n": n, "batch": 1, "layers": 1, **more, **common}
                    result = run(job)
                    found["attention"].append({"kind": kind, "n": n, "attention": name, **result})
                    print(f"{KINDS[kind]}, n={n}, {name}: {1e3 * result['seconds']:.1f} ms", file=sys.stderr)
            for fill in options.fills:
                lengths = lengths_of(fill, options.batch, options.vsl_length)
                job = {"what": "rows", "kind": kind, "n": options.vsl_length, "lengths": lengths, "layers": 2, **common}
                result = run({**job, "projected_dims": _projected(options.vsl_length)})
                found["rows"].append({"kind": kind, "n": options.vsl_length, "lengths": lengths, **result})
                print(f"{KINDS[kind]}, {fill:.0%} valid: {_ratio(result['seconds'], 'packed'):.2f}x", file=sys.stderr)
    return found


def _projected(n: int) -> int:
    """k of batches with padding."""
    return min(128, n)


def _ratio(seconds: Mapping[str, float], way: str) -> float:
    return seconds["padded"] / seconds[way]


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """Kind, n and attention -> medians over the rounds: seconds, bytes."""
    values: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for found in runs:
        values.setdefault((found["kind"], found["n"], found["attention"]), []).append(found)
    return {
        key: (statistics.median(one["seconds"] for one in all_), statistics.median(one["peak_bytes"] for one in all_))
        for key, all_ in values.items()
    }


def attention_table(runs: Sequence[Mapping[str, Any]], kind: str) -> str:
    """One kind: time and memory of each attention, and its ratio to full attention beside the paper's."""
    medians = summarize(runs)
    lines = []
    for (of, n, name), (seconds, peak) in medians.items():
        if of != kind:
            continue
        full_seconds, full_peak = medians[kind, n, FULL]
        times = [f"{1e3 * seconds:.1f}", f"{full_seconds / seconds:.2f}"]
        sizes = [f"{peak / 1e6:.1f}", f"{full_peak / max(peak, 1):.1f}"]
        if kind == PAPERS_KIND:
            k = int(name[2:]) if name.startswith("k=") else 0
            faster, smaller = PAPER.get(k, {}).get(n, ("", ""))
            times, sizes = [*times, f"{faster}"], [*sizes, f"{smaller}"]
        lines.append([str(n), name, *times, *sizes])
    papers = ["in the paper"] if kind == PAPERS_KIND else []
    header = ["n", "attention", "ms", "times faster", *papers, "peak MB", "times less memory", *papers]
    return table(header, lines)


def summarize_rows(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], dict[str, float]]:
    """Kind and share of valid tokens -> medians over the rounds: seconds of each way, and ratios to padded rows."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for found in runs:
        fill = sum(found["lengths"]) / (len(found["lengths"]) * found["n"])
        groups.setdefault((found["kind"], fill), []).append(found)
    summary = {}
    for key, same in sorted(groups.items(), key=lambda item: (list(KINDS).index(item[0][0]), item[0][1])):
        summary[key] = {way: statistics.median(one["seconds"][way] for one in same) for way in WAYS}
        for way in WAYS[1:]:
            summary[key][f"{way}, times faster"] = statistics.median(_ratio(one["seconds"], way) for one in same)
        summary[key]["difference"] = max(one["difference"] for one in same)
    return summary


def rows_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Padded, trimmed and packed rows by the share of valid tokens."""
    ratios = [f"{way}, times faster" for way in WAYS[1:]]
    lines = [
        [KINDS[kind], f"{fill:.0%}"]
        + [f"{1e3 * found[way]:.1f}" for way in WAYS]
        + [f"{found[ratio]:.2f}" for ratio in ratios]
        + [f"{1 / fill:.2f}", f"{found['difference']:.1e}"]
        for (kind, fill), found in summarize_rows(runs).items()
    ]
    header = ["", "valid tokens", *(f"{way} ms" for way in WAYS), *ratios, "ideal", "largest difference"]
    return table(header, lines)


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report."""
    sizes = results["sizes"]
    title = f"d={sizes['d_model']}, {sizes['nhead']} heads, feed-forward {sizes['dim_feedforward']}, shared-kv, fp32"
    parts = ["# Linformer", f"{describe(results['machine'])}, {results['threads']} threads. Encoder layers of {title}."]
    if results["attention"]:
        for kind, name in KINDS.items():
            parts += [f"## One layer, one row: {name}", attention_table(results["attention"], kind)]
        parts.append(PAPERS_SOURCE)
    if results["rows"]:
        first = results["rows"][0]
        what = f"two layers, {len(first['lengths'])} rows, n={first['n']}, k={_projected(first['n'])}"
        parts += [f"## Rows without padding: {what}", rows_table(results["rows"])]
        parts.append(
            "Trimmed: padded to the longest row. Packed: `lengths`. Ideal: time by the number of valid tokens."
        )
    return "\n\n".join(parts) + "\n"


def report(results: Mapping[str, Any], folder: Path) -> str:
    """Writes tables and pictures; returns the tables."""
    text = markdown(results)
    (folder / "linformer.md").write_text(text, encoding="utf-8")
    if results["attention"]:
        plot_attention(summarize(results["attention"]), {PAPERS_KIND: PAPER}, KINDS, folder / "linformer.png")
    if results["rows"]:
        first = results["rows"][0]
        title = f"Linformer without padding: {len(first['lengths'])} rows of up to {first['n']} tokens"
        plot_rows(summarize_rows(results["rows"]), KINDS, title, folder / "linformer_vsl.png")
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.linformer", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="n (default: 512 to 4096)")
    add("--projected_dims", type=int, nargs="+", default=[128, 256], help="k (default: 128 256)")
    add("--fills", type=float, nargs="*", default=[0.25, 0.5, 0.75, 1.0], help="shares of tokens that are no padding")
    add("--batch", type=int, default=8, help="rows of each batch with padding (default: 8)")
    add("--vsl_length", type=int, default=512, help="n of each batch with padding (default: 512)")
    add("--rounds", type=int, default=1, help="rounds; medians are reported (default: 1)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    add("--report", type=Path, help="measure nothing, write tables and pictures of these results")
    options = parser.parse_args(arguments)
    if any(not 0 < fill <= 1 for fill in options.fills):
        parser.error(f"--fills must be above 0 and at most 1, found {options.fills}.")
    if options.report:
        print(report(json.loads(options.report.read_text(encoding="utf-8")), options.report.parent))
        return
    found = machine()
    results = {"machine": found, "sizes": SIZES, "threads": options.threads, **measure(options)}
    path = write_results("linformer", results)
    print(f"{report(results, RESULTS)}\n{path}")


if __name__ == "__main__":
    main()
