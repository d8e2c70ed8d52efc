# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled models: second starts, damage and full disks."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from poptransformer.errors import PopTransformerError
from poptransformer.runtime import artefact
from poptransformer.sessions import Session
from tests.unit.runtime import tiny
from tests.unit.runtime.cached import Cached

PROMPT = tiny.PROMPTS[0]


def ids(session: Session) -> list[int]:
    return session.run(tiny.inputs(PROMPT))["output_ids"][0].tolist()


def test_a_second_start_builds_nothing_and_gives_the_same(cached: Cached, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "poptransformer"):
        first = cached.session()
    assert any(message.startswith("stored the compiled model in") for message in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.INFO, "poptransformer"):
        second = cached.session()
    assert caplog.messages[-2:] == [f"using the compiled model in {cached.entry}", "compiled"]
    assert cached.builds == 1
    assert ids(first) == ids(second) == tiny.reference_ids(PROMPT, 6)
    pieces = list(tiny.compiled_session(tiny.model(tiny.folder(tokenizer=True))).stream(tiny.inputs(PROMPT)))
    assert pieces == list(cached.session(tiny.model(tiny.folder(tokenizer=True))).stream(tiny.inputs(PROMPT)))


def test_nothing_is_cached_unless_asked_for(cached: Cached) -> None:
    tiny.compiled_session(tiny.model())
    assert not cached.folder.exists()


def truncate_weights(entry: Path) -> None:
    os.truncate(entry / "weights.bin", 10)


def spoil_model(entry: Path) -> None:
    (entry / "model.onnx").write_bytes(b"\xff" * (entry / "model.onnx").stat().st_size)


def spoil_manifest(entry: Path) -> None:
    (entry / "poptransformer.json").write_text("{")


def lose_manifest(entry: Path) -> None:
    (entry / "poptransformer.json").unlink()


def become_a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("not a model")


@pytest.mark.parametrize("damage", [truncate_weights, spoil_model, spoil_manifest, lose_manifest, become_a_file])
def test_a_damaged_entry_is_compiled_again(cached: Cached, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    cached.session()
    damage(cached.entry)
    with caplog.at_level(logging.WARNING, "poptransformer"):
        session = cached.session()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("Compiling again.")
    assert cached.builds == 2
    assert ids(session) == tiny.reference_ids(PROMPT, 6)
    assert cached.hits()  # it is whole again


def test_a_file_in_place_of_the_folder(cached: Cached) -> None:
    cached.folder.write_text("something else")
    with pytest.raises(PopTransformerError, match=f"Cannot write to {cached.folder}: .* Choose another folder"):
        cached.session()
    assert cached.folder.read_text() == "something else"


def test_a_full_disk(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(artefact, "write_weights", disk_full)
        with pytest.raises(PopTransformerError, match="No space left on device. Free some disk space"):
            cached.session()
    assert os.listdir(cached.folder) == []
    cached.session()


def test_a_folder_of_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    home = tiny.new_folder("home")
    monkeypatch.setenv("HOME", str(home))
    tiny.compiled_session(tiny.model(), execution_cache_name="~/cache")
    assert os.listdir(home) == ["cache"]
