# SPDX-License-Identifier: Apache-2.0
"""A command whose model lies compiled in the cache starts without what only compiling needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# What builds, rewrites and quantizes graphs, reads checkpoints in other formats, runs several ranks, searches by beams.
NEEDLESS = {
    *("onnx", "onnx_ir", "onnxscript", "sympy", "ml_dtypes", "torch", "transformers", "gguf", "safetensors"),
    *("poptransformer.graph", "poptransformer.ops", "poptransformer.layers", "poptransformer.passes"),
    *("poptransformer.quantization", "poptransformer.planning"),
    *("poptransformer.parallel.mpi", "poptransformer.runtime.threaded", "poptransformer.runtime.staged"),
    "poptransformer.generation.beams",
}
CODE = """
import runpy, sys
sys.argv[0] = "inference.py"
runpy.run_path("inference.py", run_name="__main__")
print("imported:", *sorted(set(sys.modules) & set({needless!r})))
"""


def start(example: str, *overrides: str) -> tuple[str, set[str]]:
    """Runs an example's tiny model; returns its text, and which of `NEEDLESS` it has imported."""
    code = CODE.format(needless=sorted(NEEDLESS))
    done = subprocess.run(
        [sys.executable, "-c", code, "model=tiny", "model.max_loop=4", *overrides],
        cwd=EXAMPLES / example,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    text, _, imported = done.stdout.rpartition("imported:")
    return text, set(imported.split())


# ChatGLM2's tokenizer is read by the schema of SentencePiece's files that transformers has.
@pytest.mark.parametrize(
    ("example", "needed"),
    [("gpt2", set()), ("llama2", set()), ("rwkv", set()), ("chatglm", set()), ("chatglm2", {"transformers"})],
)
def test_a_cached_model_starts_without_what_compiling_needs(example: str, needed: set[str], tmp_path: Path) -> None:
    cache = f"session.execution_cache_name={tmp_path}"
    text, imported = start(example, cache, "global_args.precision=int4")
    assert {"onnx_ir", "poptransformer.layers"} <= imported
    assert start(example, cache, "global_args.precision=int4") == (text, needed)
    assert start(example, cache, "global_args.precision=int4", "stream=false") == (text, needed)


def test_another_configuration_compiles(tmp_path: Path) -> None:
    cache = f"session.execution_cache_name={tmp_path}"
    start("llama2", cache)
    assert "onnx_ir" not in start("llama2", cache)[1]
    assert "onnx_ir" in start("llama2", cache, "global_args.precision=int8")[1]
