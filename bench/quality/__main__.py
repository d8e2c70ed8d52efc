# SPDX-License-Identifier: Apache-2.0
"""Perplexity, divergence and agreement of each precision against transformers in fp32, on SmolLM2's weights.

    python -m bench.quality                                  # all precisions; transformers and PyTorch are needed once
    python -m bench.quality --precisions fp16 int8 int4

The text is English of Python's own documentation; windows are predicted one by one, each from its beginning. The
reference's logits are computed once and kept below $PEERS_DIR (default: bench/peers), 1.7 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.catalog import SMOLLM2
from bench.english import SOURCE, english
from bench.environments import MODELS_DIR, python_of
from bench.models import model_folder
from bench.our_precisions import SETTINGS, settings
from bench.quality.metrics import Quality, compare, join, summarize
from bench.runner import ROOT, describe, machine, table, write_results

# The perplexity may change by this share at most.
BARS = {"fp16": 0.001, "bf16": 0.001, "int8": 0.005, "fp8_weight": 0.01, "int4": 0.03, "int4-gptq": 0.02}
LEAST_TOKENS = 8192


def windows_of(folder: Path, tokens: int, window: int) -> list[list[int]]:
    """The text's first tokens, cut into windows in which at least `tokens` tokens are predicted."""
    from poptransformer.checkpoint import open_checkpoint

    ids = open_checkpoint(folder).tokenizer.encode(english(), add_special_tokens=False)
    count = -(-tokens // (window - 1))  # a window's first token is not predicted
    return [ids[i * window : (i + 1) * window] for i in range(count)]


def reference_logits(folder: Path, windows: list[list[int]]) -> np.ndarray:
    """The reference's logits, float32 `[windows, tokens, vocabulary]`, mapped from a file that is made if need be."""
    text = json.dumps(windows)
    path = MODELS_DIR / SMOLLM2 / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        python = python_of("transformers")
        if python is None:
            raise SystemExit("transformers is not installed: python -m bench.setup_peers transformers")
        print(f"computing the reference's logits: {path}", file=sys.stderr, flush=True)
        temporary = path.with_name(f"part-{path.name}")
        command = [str(python), "-m", "bench.quality.reference", str(folder), str(temporary)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, input=text, text=True, check=True, cwd=ROOT, env=environment)
        temporary.rename(path)
    return np.asarray(np.load(path, mmap_mode="r"))


def measure(folder: Path, precision: str, windows: list[list[int]], reference: np.ndarray) -> Quality:
    """Loads the model in a precision and compares its predictions, all through the public API."""
    import poptransformer

    engine = poptransformer.load(folder, **settings(precision))
    parts = []
    for ids, expected in zip(windows, reference, strict=True):
        logits = engine.logits(ids)[0]
        parts.append(compare(logits[:-1], expected[:-1], np.array(ids[1:])))
    return summarize(join(parts))


def verdict(precision: str, found: Quality) -> tuple[str, str]:
    """The bar of a precision and whether it is kept; a change to the better is one too."""
    bar = BARS.get(precision)
    if bar is None:
        return "-", ""
    return f"{100 * bar:g}%", "ok" if abs(found.change) <= bar else "MISSED"


def format_rows(results: dict[str, Quality]) -> str:
    """One row per precision."""
    header = ["precision", "perplexity", "change", "standard error", "bar", "", "KL divergence", "same top token"]
    rows = [
        [
            precision,
            f"{found.perplexity:.4f}",
            f"{100 * found.change:+.3f}%",
            f"{100 * found.uncertainty:.3f}%",
            *verdict(precision, found),
            f"{found.divergence:.2e}",
            f"{100 * found.agreement:.2f}%",
        ]
        for precision, found in results.items()
    ]
    return table(header, rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--precisions", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    parser.add_argument("--tokens", type=int, default=LEAST_TOKENS, help=f"predicted tokens (default: {LEAST_TOKENS})")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window (default: 512)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    from poptransformer.errors import PopTransformerError

    options = parse(arguments)
    folder = model_folder(SMOLLM2)
    windows = windows_of(folder, options.tokens, options.window)
    reference = reference_logits(folder, windows)
    results: dict[str, Quality] = {}
    for precision in options.precisions:
        try:
            results[precision] = measure(folder, precision, windows, reference)
        except (PopTransformerError, TypeError) as error:  # an older release lacks the precision, or its settings
            print(f"skipped: {precision}: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{precision}: {dataclasses.asdict(results[precision])}", file=sys.stderr, flush=True)
    return _report(options, windows, results)


def _report(options: argparse.Namespace, windows: list[list[int]], results: dict[str, Quality]) -> int:
    if not results:
        return 1
    one = next(iter(results.values()))
    kept: dict[str, Any] = {
        "machine": machine(),
        "text": SOURCE,
        "ids_sha256": hashlib.sha256(json.dumps(windows).encode()).hexdigest(),
        "window": options.window,
        "rows": {precision: dataclasses.asdict(found) for precision, found in results.items()},
    }
    text = (
        f"# Quality\n\nSmolLM2-135M-Instruct, {one.tokens} tokens of {SOURCE} in windows of {options.window}; "
        f"{describe(kept['machine'])}. Perplexity of transformers in fp32: {one.reference_perplexity:.4f}.\n\n"
        f"{format_rows(results)}\n"
    )
    path = write_results("quality", kept)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{text}\n{path}, .md")
    return int(any(verdict(precision, found)[1] == "MISSED" for precision, found in results.items()))


if __name__ == "__main__":
    raise SystemExit(main())
