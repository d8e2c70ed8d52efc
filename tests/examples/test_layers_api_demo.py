# SPDX-License-Identifier: Apache-2.0
"""The demo of the layers API: trained, evaluated, and run as a graph, by the commands of its README."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "layers_api_demo"
TRAIN = ("run.py", "CPU", "--mode", "train", "--params", "configs/params.yaml")


def python(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=DEMO, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert "training: 1000 of 1000" in python(*TRAIN, "-o", str(folder))
    return folder


def test_it_learns_the_alphabet(model_dir: Path) -> None:
    python("run.py", "CPU", "--mode", "eval", "--params", "configs/params.yaml", "-o", str(model_dir))
    figures = json.loads((model_dir / "eval" / "results.json").read_text())["step 1000"]
    assert figures["eval/accuracy"] == 1.0
    assert (model_dir / "train" / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = (model_dir / "train" / "loss.csv").read_text().splitlines()
    first, last = (float(row.split(",")[1]) for row in (rows[1], rows[1000]))
    assert first > 1.2 and last < 0.25


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_graph_continues_the_alphabet(model_dir: Path, precision: str) -> None:
    out = python("inference.py", "cde", "--letters", "9", "--model_dir", str(model_dir), "--precision", precision)
    assert out.splitlines()[0] == "cdefghijklmn"


def test_the_graph_needs_no_torch(model_dir: Path) -> None:
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.path.insert(0, '.'); "
        f"sys.argv = ['inference.py', '--model_dir', {str(model_dir)!r}]; "
        "runpy.run_path('inference.py', run_name='__main__')"
    )
    assert "abcdefghijklm" in python("-c", code)


def test_validate_and_compile(model_dir: Path) -> None:
    flags = ("--mode", "train", "--params", "configs/params.yaml", "-o", str(model_dir))
    out = python("run.py", *flags, "--validate_only")
    assert "graph: valid" in out and "(batch 32, tokens 10)" in out and "no weight was read" in out
    python("run.py", *flags, "--compile_only")
    assert {path.name for path in (model_dir / "compiled").iterdir()} == {"manifest.json", "model.onnx", "weights.bin"}


def test_a_killed_run_ends_with_the_same_losses(model_dir: Path, tmp_path: Path) -> None:
    flags = [*TRAIN, "-o", str(tmp_path)]
    running = subprocess.Popen([sys.executable, *flags], cwd=DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while not (tmp_path / "checkpoint_500").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "checkpoint_1000").exists()
    assert "continues from" in python(*flags)
    assert (tmp_path / "train" / "loss.csv").read_text() == (model_dir / "train" / "loss.csv").read_text()


def test_without_weights_it_says_what_to_do(tmp_path: Path) -> None:
    out = python("inference.py", "--model_dir", str(tmp_path), code=1)
    assert "has no checkpoint. Train first: python run.py" in out
