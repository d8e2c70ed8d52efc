# SPDX-License-Identifier: Apache-2.0
"""One measured run, as the benchmarks start it: a process of its own, from a checkpoint and from a saved model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.runner import run_model
from tests.unit.runtime import tiny

BUILDING = {"build graph", "passes"}


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_stream(is_saved: bool) -> None:
    model = tiny.saved() if is_saved else tiny.folder()
    found = run_model(model=str(model), action="stream", tokens=4, threads=1)
    assert 0 < found["phases"]["first token"]["seconds"] < found["first_token_seconds"]
    assert found["tokens_per_second"] > 0 < found["anon_bytes"] < found["peak_bytes"]
    assert {"import", "open", "load (total)", "session"} <= set(found["phases"])
    assert BUILDING & set(found["phases"]) == (set() if is_saved else BUILDING)


def test_save_and_generate(tmp_path: Path) -> None:
    saved = str(tmp_path / "saved")
    assert set(run_model(model=str(tiny.folder()), action="save", output=saved)["phases"]) >= BUILDING
    assert run_model(model=saved, action="generator", tokens=4)["tokens_per_second"] > 0


def test_a_run_that_fails() -> None:
    with pytest.raises(SystemExit, match="status 1"):
        run_model(model="/nowhere", action="stream", tokens=4)
