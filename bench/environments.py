# SPDX-License-Identifier: Apache-2.0
"""Where peers are installed: each in a virtual environment of its own, or in the one that is running."""

from __future__ import annotations

import compileall
import importlib.util
import os
import sys
from pathlib import Path

from bench.catalog import ENGINES, OURS
from bench.runner import ROOT

PEERS_DIR = Path(os.environ.get("PEERS_DIR") or ROOT / "bench" / "peers").absolute()
MODELS_DIR = PEERS_DIR / "models"


def environment_folder(engine: str) -> Path:
    """The folder of an engine's virtual environment, whether it exists or not."""
    return PEERS_DIR / f"venv-{engine}"


def python_of(engine: str) -> Path | None:
    """The interpreter that has an engine, or None: its own environment's, or this one."""
    own = environment_folder(engine) / "bin" / "python"
    if engine != OURS and own.exists():
        return own
    here = all(importlib.util.find_spec(package) for package in ENGINES[engine].packages)
    return Path(sys.executable) if here else None


def llama_cpp_source() -> Path | None:
    """llama.cpp's source, whose converter no package has; `bench.setup_peers` unpacks it."""
    found = sorted((PEERS_DIR / "src").glob("llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py"))
    return found[-1].parent if found else None


def compile_modules() -> None:
    """Compiles the Python modules of this package and of the benchmark, as pip compiles those of the peers.

    Python would do it in the first process, but where PYTHONDONTWRITEBYTECODE is set every process does it again.
    """
    for folder in ("poptransformer", "bench"):
        compileall.compile_dir(ROOT / folder, quiet=2)
