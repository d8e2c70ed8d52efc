# SPDX-License-Identifier: Apache-2.0
"""How a saved model starts: what it imports, and what it does at the same time."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import poptransformer
from poptransformer import loading
from poptransformer.engine import Engine
from poptransformer.runtime import runtime as module
from tests.unit.runtime import tiny

# Readers of checkpoints in other formats, other tokenizers, chats, beams, several ranks; and what these alone import.
NEEDLESS = {
    *(f"poptransformer.checkpoint.{name}" for name in ("open", "blank_weights", "random_weights", "weight_files")),
    *(f"poptransformer.checkpoint.{name}" for name in ("safetensors_file", "torch_bin", "gguf_file", "lazy_array")),
    *(f"poptransformer.checkpoint.{name}" for name in ("chatglm_tokenizer", "chatglm2_tokenizer", "chat_template")),
    *("poptransformer.generation.beams", "poptransformer.parallel", "poptransformer.runtime.staged"),
    *("poptransformer.runtime.threaded", "poptransformer.graph", "poptransformer.passes", "poptransformer.models"),
    *("onnx", "onnx_ir", "onnxscript", "torch", "transformers", "huggingface_hub", "jinja2", "numpy.random"),
}
STREAM = """
import os, sys, threading
import poptransformer
before = dict(os.environ)
engine = poptransformer.load(sys.argv[1], threads=1)
print("".join(engine.stream("Hello", max_new_tokens=12, ignore_eos=True)))
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(60)
print(threading.active_count(), os.environ == before, *sorted(sys.modules))
"""


@functools.cache
def saved() -> Path:
    """A saved model with a tokenizer; tests must not change it."""
    return tiny.engine(tokenizer=True).save(tiny.new_folder() / "model")


def test_a_stream_imports_nothing_needless_and_leaves_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(saved())], timeout=120, check=True, capture_output=True, text=True
    )
    *text, last = done.stdout.split("\n")[:-1]
    count, is_same, *modules = last.split()
    assert "\n".join(text) == tiny.engine(tokenizer=True).generate("Hello", max_new_tokens=12, ignore_eos=True)
    assert (count, is_same) == ("1", "True")
    assert not NEEDLESS & set(modules)
    assert {"poptransformer.engine", "poptransformer.generation.text", "tokenizers"} <= set(modules)


# -- the session opens while the tokenizer loads ----------------------------------------------------------------------


class Watch:
    """Notes in which order sessions are opened and the tokenizer is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._open = module.open_session
        monkeypatch.setattr(module, "open_session", self._opened)
        self.engine = poptransformer.load(saved(), threads=1)
        checkpoint: Any = self.engine.checkpoint
        self._load = checkpoint._load_tokenizer
        monkeypatch.setattr(checkpoint, "_load_tokenizer", self._loaded)

    def _opened(self, path: Path, settings: Any, weights: Any, on_read: Any) -> Any:
        def read() -> None:
            self.events.append(f"read {path.name}")
            on_read()

        return self._open(path, settings, weights, read)

    def _loaded(self) -> Any:
        self.events.append("tokenizer")
        return self._load()


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("generate", "file"),
    [
        (lambda engine: "".join(engine.stream("Hello", max_new_tokens=8)), "decoder.onnx"),
        (lambda engine: engine.generate("Hello", max_new_tokens=8, num_beams=None), "decoder.onnx"),
        (lambda engine: engine.generate(["Hello", "you"], max_new_tokens=8), "decoder.onnx"),
        (lambda engine: engine.chat(MESSAGES, max_new_tokens=8), "decoder.onnx"),
        (lambda engine: engine.generate("Hello", max_new_tokens=8, num_beams=2), "model.onnx"),
    ],
)
def test_texts(generate: Any, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer holds Python's lock while it loads: the graph has been read before."""
    watch = Watch(monkeypatch)
    answer = generate(watch.engine)
    assert answer == generate(tiny.engine(tokenizer=True))
    assert watch.events == [f"read {file}", "tokenizer"]
    assert generate(watch.engine) == answer
    assert len(watch.events) == 2


def test_beams_of_each_row_are_seen_when_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    watch.engine.generate(["Hello", "you"], max_new_tokens=4, num_beams=[1, 2])
    assert watch.events == ["tokenizer", "read decoder.onnx", "read model.onnx"]


def test_ids_open_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    watch.engine.logits(tiny.PROMPTS[0])
    assert watch.events == ["read model.onnx"]


def test_a_tokenizer_alone_opens_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    watch.engine.tokenizer.encode("Hello")
    assert watch.events == ["tokenizer"]
    watch.engine.generate("Hello", max_new_tokens=2)
    assert watch.events == ["tokenizer", "read decoder.onnx"]


def test_a_checkpoint_makes_its_session_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert poptransformer.load(tiny.folder(tokenizer=True)).make_ready_meanwhile(beams=False) is None


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"no graph"), Path.unlink])
def test_a_graph_that_cannot_be_opened(spoil: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine = _spoilt("decoder.onnx", spoil)
    with pytest.raises(Exception, match="decoder.onnx") as by_text:
        engine.generate("Hello", max_new_tokens=2)
    with pytest.raises(Exception, match="decoder.onnx") as by_ids:
        engine.generate([5, 6], max_new_tokens=2)
    assert (by_text.type, str(by_text.value)) == (by_ids.type, str(by_ids.value))
    assert "Traceback" not in capfd.readouterr().err


def test_a_tokenizer_that_cannot_be_loaded() -> None:
    engine = _spoilt("tokenizer.json", lambda path: path.write_text("{}"))
    with pytest.raises(poptransformer.errors.PopTransformerError, match="tokenizer.json"):
        engine.generate("Hello", max_new_tokens=2)
    assert len(engine.generate([5, 6], max_new_tokens=2, ignore_eos=True)) == 2


def _spoilt(name: str, spoil: Any) -> Engine:
    """A model whose file is spoilt after it was checked."""
    folder = tiny.engine(tokenizer=True).save(tiny.new_folder() / "model")
    engine = poptransformer.load(folder)
    spoil(folder / name)
    return engine


# -- what is read and imported first ----------------------------------------------------------------------------------


def test_a_saved_model_is_read_ahead_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(loading, "read_ahead", folders.append)
    monkeypatch.setenv("HOME", str(saved().parent))
    poptransformer.load(saved())
    poptransformer.load("~/model")
    assert folders == [saved(), saved()]
    poptransformer.load(tiny.folder())
    assert len(folders) == 2


IMPORT = """
import os, sys
class Finder:
    def find_spec(name, *_):
        if name == "numpy":
            print(os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
sys.meta_path.insert(0, Finder)
from poptransformer.numpy_import import import_numpy
import_numpy()
import_numpy()
print(os.environ.get("OPENBLAS_THREAD_TIMEOUT"), "numpy" in sys.modules)
"""


@pytest.mark.parametrize(("given", "expected"), [(None, ["4", "None True"]), ("26", ["26", "26 True"])])
def test_openblas_threads_do_not_spin_unless_they_are_to(given: str | None, expected: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    environment |= {} if given is None else {"OPENBLAS_THREAD_TIMEOUT": given}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment, timeout=60, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == expected
