# SPDX-License-Identifier: Apache-2.0
"""This engine and its peers, side by side: speed, memory and start-up on the same weights, prompts and token counts.

    python -m bench.setup_peers            # once: installs the peers, one virtual environment each
    python -m bench.compare                # everything: hours; see --models, --sets, --peers, --precisions, --rounds
    python -m bench.compare --models smollm2-135m --sets decode prefill --peers llama-cpp-python onnxruntime-genai
    python -m bench.compare --report bench/results/compare.json

Every measurement is a process of its own. A round goes over all engines before the next one starts, so that a slow
minute of the machine falls on all of them; tables show medians over the rounds, and ratios of the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.catalog import ENGINES, MODELS, OURS, PEERS, SETS
from bench.convert import NotConvertedError, converted
from bench.environments import compile_modules, python_of
from bench.limits import PROGRAM, measure_limits
from bench.measure import Entry, MeasurementError, measure
from bench.models import model_folder, positions
from bench.runner import RESULTS, describe, machine

LEAST_ROUNDS = 5


def parse(arguments: list[str] | None) -> argparse.Namespace:
    precisions = [variant.name for variant in ENGINES[OURS].variants]
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all installed")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: all")
    parser.add_argument("--precisions", nargs="*", choices=precisions, default=precisions, help="ours; default: all")
    parser.add_argument("--variants", nargs="+", help="of the peers, such as q4_0 int4; default: all")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help=f"default: {LEAST_ROUNDS}")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every engine (default: 2)")
    parser.add_argument("--lock", type=Path, help="a file that is locked around each measurement")
    parser.add_argument("--prepare", action="store_true", help="make and convert the models, measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS / "compare", help="without ending: .json .md .png")
    parser.add_argument("--report", type=Path, help="make table and plot of these results, measure nothing")
    return parser.parse_args(arguments)


def entries(options: argparse.Namespace) -> list[Entry]:
    """Everything that can be measured; says what cannot, and why."""
    found = []
    engines = [name for name in (OURS, *options.peers) if _is_installed(name)]
    for model in options.models:
        for name in engines:
            wanted = options.precisions if name == OURS else options.variants
            for variant in ENGINES[name].variants:
                if model not in variant.models or (wanted is not None and variant.name not in wanted):
                    continue
                try:
                    path = converted(name, variant.name, model)
                except NotConvertedError as error:
                    say(f"skipped: {model} {name} {variant.name}: {error}")
                    continue
                found.append(Entry(name, variant.name, variant.bits, model, path))
    return found


def _is_installed(engine: str) -> bool:
    if python_of(engine) is not None:
        return True
    say(f"skipped: {engine} is not installed: python -m bench.setup_peers {engine}")
    return False


def run_rounds(options: argparse.Namespace, plan: list[Entry], results: dict[str, Any]) -> None:
    """Adds the runs of all rounds to the results, and writes them after each round."""
    for number in range(options.rounds):
        limits = measure_limits(options.threads, options.lock)
        if limits:
            results["limits"].append(limits)
        for model in options.models:
            for name in options.sets:
                for entry in (entry for entry in plan if entry.model == model):
                    _run(options, entry, name, number, results)
        write_json(options.output, results)


def _run(options: argparse.Namespace, entry: Entry, name: str, number: int, results: dict[str, Any]) -> None:
    job_set = SETS[name].fitted(entry.model, positions(entry.model))
    title = f"round {number + 1}/{options.rounds}: {entry.model} {name}: {entry.engine} {entry.variant}"
    try:
        found = measure(entry, job_set, options.threads, options.lock)
    except MeasurementError as error:
        say(f"{title}: FAILED: {error}")
        return
    key = {"model": entry.model, "set": name, "engine": entry.engine, "variant": entry.variant, "bits": entry.bits}
    results["runs"].append({**key, "round": number, **found})
    say(f"{title}: {' '.join(f'{value:.4g}' for value in found['values'])}")


def write_json(output: Path, results: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(results) + "\n", encoding="utf-8")


def report(output: Path, results: dict[str, Any]) -> None:
    """Prints the tables, and writes them and the plot."""
    from bench.report import markdown

    text = markdown(results)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    try:
        from bench.plot import plot
    except ImportError as error:
        say(f"no plot: {error}; pip install matplotlib")
    else:
        plot(results, output.with_suffix(".png"))
    say(f"{output}.json, .md, .png")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.report:
        report(options.report.with_suffix(""), json.loads(options.report.read_text(encoding="utf-8")))
        return 0
    if options.rounds < LEAST_ROUNDS:
        say(f"{options.rounds} rounds: a quick look; {LEAST_ROUNDS} are needed for figures to be quoted")
    if not PROGRAM.exists():
        say("no limits of the machine: make limits")
    for model in options.models:
        model_folder(model)
    plan = entries(options)
    if options.prepare or not plan:
        return 0 if plan else 1
    results: dict[str, Any] = {"machine": machine(), "threads": options.threads, "limits": [], "runs": []}
    say(describe(results["machine"]))
    compile_modules()
    run_rounds(options, plan, results)
    report(options.output, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
