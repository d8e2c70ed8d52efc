# SPDX-License-Identifier: Apache-2.0
"""What is prepared before anything is measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench import environments


def test_modules_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    sources = [tmp_path / "poptransformer" / "engine.py", tmp_path / "bench" / "engines" / "worker.py"]
    for source in sources:
        source.parent.mkdir(parents=True)
        source.write_text("VALUE = 1\n", encoding="ascii")
    environments.compile_modules()
    compiled = [Path(importlib.util.cache_from_source(str(source))) for source in sources]
    assert all(path.is_file() for path in compiled)
    times = [path.stat().st_mtime_ns for path in compiled]
    environments.compile_modules()
    assert [path.stat().st_mtime_ns for path in compiled] == times
