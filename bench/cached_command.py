# SPDX-License-Identifier: Apache-2.0
"""Time from typing an example's command to its first token, with the model in the cache of compiled models.

    python -m bench.cached_command                                     # SmolLM2-135M-Instruct, int4
    python -m bench.cached_command --example gpt2 --precision fp16 --rounds 9

Interpreter, imports, Hydra, tokenizer and onnxruntime included; the text's first bytes arrive with the first token. The
first run compiles, the second warms the files; neither is counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from bench.environments import compile_modules
from bench.runner import ROOT, describe, machine, table, write_results


def start(example: str, overrides: list[str]) -> dict[str, float]:
    """Runs the command once.

    Args:
        example: a folder of `examples`.
        overrides: what follows `inference.py`.

    Returns:
        `first_token_seconds`, and `cpu_seconds` of the whole run.

    Raises:
        SystemExit: the command failed.
    """
    before = os.times()
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "inference.py", *overrides], cwd=ROOT / "examples" / example, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        first = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the command ended with status {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"first_token_seconds": first, "cpu_seconds": cpu}


def format_rows(title: str, rounds: list[dict[str, Any]]) -> str:
    """Median, lowest and highest of each figure in milliseconds."""
    rows = []
    for name, text in (("first_token_seconds", "first token, wall ms"), ("cpu_seconds", "whole run, CPU ms")):
        values = [1e3 * found[name] for found in rounds]
        rows.append([f"{title}: {text}", *(f"{f(values):.0f}" for f in (statistics.median, min, max))])
    return table(["cached command", "median", "lowest", "highest"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cached_command", description=__doc__.splitlines()[0])
    parser.add_argument("--example", default="llama2", help="a folder of examples (default: llama2)")
    parser.add_argument("--precision", default="int4", help="global_args.precision (default: int4)")
    parser.add_argument("--rounds", type=int, default=7, help="counted runs (default: 7)")
    parser.add_argument("overrides", nargs="*", help="more of them, as in model=tiny")
    options = parser.parse_args(arguments)
    compile_modules()
    found = machine()
    with tempfile.TemporaryDirectory(prefix="poptransformer-bench-") as cache:
        overrides = [f"session.execution_cache_name={cache}", f"global_args.precision={options.precision}"]
        overrides += ["model.max_loop=3", "log_level=error", *options.overrides]
        rounds = [start(options.example, overrides) for _ in range(options.rounds + 2)][2:]
    path = write_results("cached_command", {"machine": found, "overrides": overrides, "rounds": rounds})
    print(f"{describe(found)}\n\n{format_rows(f'{options.example}, {options.precision}', rounds)}\n\n{path}")


if __name__ == "__main__":
    main()
