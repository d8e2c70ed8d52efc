# SPDX-License-Identifier: Apache-2.0
"""Memory and time of building, opening, saving and running a 1.1B-parameter Llama.

    python -m bench.build_memory                      # all rows; 9 GB of temporary files, a few minutes
    python -m bench.build_memory --rows build --checkpoint /data/llama-1.1b

The bar: `poptransformer.load` of an fp16 checkpoint with precision fp16 and a generation of some tokens peak at no
more than 1.3 times the bytes of the checkpoint in resident memory (VmHWM). The exit status is 1 above it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.make_checkpoint import check_space, checkpoint_bytes, make_checkpoint
from bench.runner import describe, machine, run_model, table, write_results
from bench.shapes import CONFIGS

BAR = 1.3
BAR_SHAPE = "llama-1.1b"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured run.

    Attributes:
        title: what the table calls it.
        checkpoint: dtype of the checkpoint that it starts from; "saved" is what the row `save` wrote.
        precision: what `load` is asked for; None where the saved model knows.
        action: what `bench.run_model` does after `load`.
    """

    title: str
    checkpoint: str
    precision: str | None
    action: str


ROWS = {
    "build": Row("fp16 -> fp16, step by step", "fp16", "fp16", "stream"),
    "generator": Row("fp16 -> fp16, in one call", "fp16", "fp16", "generator"),
    "fp32": Row("fp16 -> fp32, step by step", "fp16", "fp32", "stream"),
    "bf16": Row("fp16 -> bf16, step by step", "fp16", "bf16", "stream"),
    "save": Row("fp16 -> fp16, engine.save", "fp16", "fp16", "save"),
    "load": Row("saved fp16, step by step", "saved", None, "stream"),
    "from-fp32": Row("fp32 -> fp16, step by step", "fp32", "fp16", "stream"),
}
MAIN = "build"
PHASES = ("import", "open", "build graph", "passes", "session", "save", "first token")


class Bench:
    """Checkpoints made when a row needs them, and the rows' results."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.saved = folder / "saved"

    def checkpoint(self, dtype: str) -> Path:
        """The checkpoint of that dtype; "saved" is the saved model."""
        if dtype == "saved":
            return self.saved
        if dtype == "fp16" and self.options.checkpoint:
            return self.options.checkpoint
        path = self.folder / dtype
        if not path.exists():
            print(f"writing a random {self.options.shape} in {dtype} to {path}", flush=True)
            make_checkpoint(path, CONFIGS[self.options.shape], dtype)
        return path

    def run(self, row: Row) -> dict[str, Any]:
        """Runs one row and adds its ratio."""
        model = self.checkpoint(row.checkpoint)
        if row.action == "save":
            check_space(self.folder, size_of(model))
        print(f"running: {row.title}", flush=True)
        job = {"model": str(model), "precision": row.precision, "action": row.action, "output": str(self.saved)}
        result = run_model(**job, tokens=self.options.tokens, threads=self.options.threads)
        size = size_of(self.checkpoint(row.checkpoint))
        return {"title": row.title, "checkpoint_bytes": size, "ratio": result["peak_bytes"] / size, **result}


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def format_rows(results: dict[str, dict[str, Any]]) -> str:
    """Memory and speed as one table, phases as another."""
    memory_rows, phase_rows = [], []
    for result in results.values():
        sizes = [f"{result[key] / 1e6:.0f}" for key in ("checkpoint_bytes", "peak_bytes", "anon_bytes", "file_bytes")]
        speed = result.get("tokens_per_second")
        memory_rows.append([result["title"], *sizes, f"{result['ratio']:.3f}", f"{speed:.2f}" if speed else ""])
        phases = [result["phases"].get(name) for name in PHASES]
        phase_rows.append([result["title"], *(f"{phase['seconds']:.2f}" if phase else "" for phase in phases)])
    header = ["run", "checkpoint MB", "peak RSS MB", "anonymous MB", "file MB", "ratio", "tok/s"]
    seconds = [f"{name} s" for name in PHASES]
    return table(header, memory_rows) + "\n\n" + table(["run", *seconds], phase_rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.build_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--shape", choices=CONFIGS, default=BAR_SHAPE)
    parser.add_argument("--checkpoint", type=Path, help="an fp16 checkpoint to use instead of a random one")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each row generates (default: 16)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    options = parser.parse_args(arguments)
    if "load" in options.rows and "save" not in options.rows:
        options.rows.insert(options.rows.index("load"), "save")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    dtypes = {ROWS[name].checkpoint for name in options.rows} - {"saved"}
    needed = sum(checkpoint_bytes(CONFIGS[options.shape], dtype) for dtype in dtypes)
    needed += checkpoint_bytes(CONFIGS[options.shape], "fp16") if "save" in options.rows else 0
    parent = Path(tempfile.gettempdir())
    check_space(parent, needed)
    found = machine()
    folder = Path(tempfile.mkdtemp(prefix="poptransformer-bench-", dir=parent))
    try:
        bench = Bench(options, folder)
        results = {name: bench.run(ROWS[name]) for name in options.rows}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path = write_results("build_memory", {"machine": found, "shape": options.shape, "bar": BAR, "rows": results})
    print(f"\n{options.shape}: {describe(found)}\n\n{format_rows(results)}\n\n{path}")
    return verdict(options.shape, results)


def verdict(shape: str, results: dict[str, dict[str, Any]]) -> int:
    """Says whether the main row keeps the bar; 1 if it does not. Other shapes have none: Python alone weighs 0.1 GB."""
    if MAIN not in results:
        return 0
    title, ratio = results[MAIN]["title"], results[MAIN]["ratio"]
    kept = ratio <= BAR
    bar = f"the bar is {BAR}: {'ok' if kept else 'FAILED'}" if shape == BAR_SHAPE else f"no bar ({BAR_SHAPE} has one)"
    print(f"{title}: the peak is {ratio:.3f} x the checkpoint, {bar}")
    return int(shape == BAR_SHAPE and not kept)


if __name__ == "__main__":
    raise SystemExit(main())
