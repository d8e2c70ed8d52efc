# SPDX-License-Identifier: Apache-2.0
"""A saved model that opens in a thread while its user does something else."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from poptransformer.runtime import runtime as module
from poptransformer.runtime.artefact import load_artefact
from poptransformer.runtime.runtime import Runtime
from tests.unit.runtime import tiny
from tests.unit.runtime.cached import Cached

PROMPT = tiny.PROMPTS[0]


class Gate:
    """`open_session` that waits until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_open, self.called = threading.Event(), threading.Event()
        self.files: list[str] = []
        self.threads: list[threading.Thread] = []
        self._open = module.open_session
        monkeypatch.setattr(module, "open_session", self)

    def __call__(self, path: Path, *arguments: Any) -> Any:
        self.files.append(path.name)
        self.threads.append(threading.current_thread())
        self.called.set()
        assert self.may_open.wait(60)
        return self._open(path, *arguments)


@pytest.mark.parametrize(("beams", "file"), [(False, "decoder.onnx"), (True, "model.onnx")])
def test_it_opens_once(monkeypatch: pytest.MonkeyPatch, beams: bool, file: str) -> None:
    gate = Gate(monkeypatch)
    runtime = Runtime(load_artefact(tiny.saved()))
    runtime.make_ready_meanwhile(beams)
    assert gate.called.wait(60)  # and this thread was free to wait
    waiting = threading.Thread(target=runtime.make_ready, args=[beams])
    waiting.start()
    gate.may_open.set()
    runtime.make_ready(beams)
    waiting.join()
    assert gate.files == [file]
    assert gate.threads[0] not in (waiting, threading.current_thread())


def test_an_error_shows_where_the_session_is_used(capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(tiny.saved(), tiny.new_folder() / "model"))
    runtime = Runtime(load_artefact(folder))
    (folder / "decoder.onnx").write_bytes(b"")
    before = set(threading.enumerate())
    runtime.make_ready_meanwhile(beams=False)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(Exception, match="decoder.onnx|ModelProto"):
        runtime.make_ready(beams=False)


def test_a_cached_model_opens_meanwhile_and_a_new_one_does_too(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lie in the cache's folder by then."""
    gate = Gate(monkeypatch)
    gate.may_open.set()
    texts = []
    for _ in range(2):
        session = cached.session()
        assert gate.called.wait(60)
        texts.append(session.engine.generate(PROMPT, max_new_tokens=6))
        gate.called.clear()
    assert texts[0] == texts[1]
    assert gate.files.count("decoder.onnx") == 2
    assert threading.current_thread() not in gate.threads[:1]


def test_a_model_without_a_cache_opens_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(Runtime, "make_ready_meanwhile", lambda *_, **__: started.append(True))
    tiny.compiled_session(tiny.model())
    assert not started
