# SPDX-License-Identifier: Apache-2.0
"""The measurement of a cached command's start."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cached_command, runner


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    cached_command.main(["--rounds", "1", "--precision", "fp16", "model=tiny"])
    out = capsys.readouterr().out
    assert "| llama2, fp16: first token, wall ms |" in out
    assert (tmp_path / "cached_command.json").is_file()


def test_a_command_that_fails() -> None:
    with pytest.raises(SystemExit, match="ended with status 1"):
        cached_command.start("llama2", ["model=tiny", "model.topk=-1"])
