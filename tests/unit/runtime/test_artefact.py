# SPDX-License-Identifier: Apache-2.0
"""Saving and loading models: all or nothing, and clear words about what is damaged."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import poptransformer
from poptransformer.errors import PopTransformerError
from poptransformer.runtime import artefact
from tests.unit.runtime import tiny

PROMPT = tiny.PROMPTS[0]
EXPECTED = tiny.reference_ids(PROMPT)


def works(folder: Path | str) -> bool:
    return poptransformer.load(folder).generate(PROMPT, max_new_tokens=12) == EXPECTED


def test_the_files() -> None:
    names = {path.name for path in tiny.saved().iterdir()}
    assert names == {
        *("model.onnx", "decoder.onnx", "generator.onnx", "sampler.onnx", "weights.bin", "poptransformer.json"),
        *("config.json", "generation_config.json"),
    }
    manifest = json.loads((tiny.saved() / "poptransformer.json").read_text())
    assert set(manifest["files"]) == names - {"poptransformer.json"}
    assert manifest["model"]["source"] == str(tiny.folder())
    assert (tiny.saved().stat().st_mode & 0o777) == 0o755


def test_opening_a_saved_model_imports_nothing_that_builds_graphs() -> None:
    code = (
        "import sys, poptransformer\n"
        "engine = poptransformer.load(sys.argv[1])\n"
        "print(engine.generate([5, 6], max_new_tokens=3), engine.runtime.generator_session)\n"
        "print([name for name in ('onnx', 'onnx_ir', 'onnxscript', 'sympy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny.saved())], timeout=60, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_tokenizer_comes_along() -> None:
    engine = tiny.engine(tokenizer=True)
    copy = poptransformer.load(engine.save(tiny.new_folder() / "model"))
    messages = [{"role": "user", "content": "hi"}]
    assert copy.generate("Hello", max_new_tokens=12) == engine.generate("Hello", max_new_tokens=12)
    assert copy.chat(messages, max_new_tokens=8) == engine.chat(messages, max_new_tokens=8)
    assert copy.stop_token_ids == engine.stop_token_ids == {tiny.EOS}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bit_weights_come_back_as_they_were(precision: str) -> None:
    engine = poptransformer.load(tiny.folder(), precision=precision, max_length=40)
    copy = poptransformer.load(engine.save(tiny.new_folder() / "model"))
    assert (copy.logits(PROMPT) == engine.logits(PROMPT)).all()
    assert copy.runtime.compiled.info == engine.runtime.compiled.info
    assert (copy.runtime.max_length, copy.runtime.compiled.info.precision) == (40, precision)


def test_a_saved_model_can_be_saved_again_even_over_itself() -> None:
    folder = tiny.copy_of_saved()
    engine = poptransformer.load(folder)
    other = engine.save(tiny.new_folder() / "model")
    assert (other / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    engine.save(folder)
    assert engine.generate(PROMPT, max_new_tokens=12) == EXPECTED
    assert works(folder)
    assert works(other)


def test_all_orders_of_use_give_the_same() -> None:
    """Step graph, generation loop and files are written from one model; none may spoil it for the others."""
    for order in ("gsf", "fgs", "sgf", "fsg"):
        engine = poptransformer.load(tiny.folder())
        params = engine.params([PROMPT], max_new_tokens=12)
        for what in order:
            if what == "g":
                assert engine.runtime.generate([PROMPT], params, engine.stop_token_ids) == [EXPECTED]
            elif what == "s":
                assert engine.generate(PROMPT, max_new_tokens=12) == EXPECTED
            else:
                assert works(engine.save(tiny.new_folder() / "model"))


# -- targets ----------------------------------------------------------------------------------------------------------


def test_parents_are_made_and_an_empty_folder_is_taken() -> None:
    for folder in (tiny.new_folder() / "a" / "b" / "model", tiny.new_folder()):
        assert works(tiny.engine().save(folder))


def test_paths_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    home = tiny.new_folder("home")
    monkeypatch.setenv("HOME", str(home))
    assert tiny.engine().save("~/model") == home / "model"
    assert works("~/model")


def test_the_working_directory_may_change_after_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.engine(tokenizer=True).save(tiny.new_folder() / "model")
    monkeypatch.chdir(folder.parent)
    engine = poptransformer.load("model")
    monkeypatch.chdir("/")
    assert engine.generate("Hello", max_new_tokens=3)


def test_an_older_model_is_replaced() -> None:
    folder = tiny.engine("gpt2").save(tiny.new_folder() / "model")
    (folder / "notes.txt").write_text("of the older model")
    tiny.engine().save(folder)
    assert works(folder)
    assert not (folder / "notes.txt").exists()
    assert os.listdir(folder.parent) == ["model"]


def test_anything_else_is_left_alone() -> None:
    parent = tiny.new_folder()
    (parent / "other").mkdir()
    (parent / "other" / "thesis.txt").touch()
    (parent / "file").write_text("text")
    for name, problem in (
        ("other", "is not empty and no saved model"),
        ("file", "is a file"),
        ("file/model", "Cannot write to"),
    ):
        with pytest.raises(PopTransformerError, match=problem):
            tiny.engine().save(parent / name)
    assert sorted(os.listdir(parent)) == ["file", "other"]
    assert os.listdir(parent / "other") == ["thesis.txt"]


# -- failures while writing -------------------------------------------------------------------------------------------


def disk_full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["write_weights", "_graphs", "save_checkpoint_files"])
@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize(("failure", "raised"), [(disk_full, PopTransformerError), (interrupted, KeyboardInterrupt)])
def test_nothing_is_left_of_a_failure(
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    replacing: bool,
    failure: Callable[..., None],
    raised: type[BaseException],
) -> None:
    folder = tiny.copy_of_saved() if replacing else tiny.new_folder() / "model"
    with monkeypatch.context() as patch, pytest.raises(raised) as error:
        patch.setattr(artefact, step, failure)
        tiny.engine().save(folder)
    if raised is PopTransformerError:
        assert str(error.value) == (
            f"Writing the model to {folder} failed: No space left on device. "
            "Free some disk space or choose another folder."
        )
    assert os.listdir(folder.parent) == (["model"] if replacing else [])
    assert not replacing or works(folder)


def test_the_older_model_returns_if_the_new_one_cannot_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.copy_of_saved()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == folder and self.name != "model":
            disk_full()
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(PopTransformerError, match="No space left"):
        patch.setattr(Path, "rename", refuse)
        tiny.engine("gpt2").save(folder)
    assert os.listdir(folder.parent) == ["model"]
    assert works(folder)


KILLED = """
import os, signal, sys
import poptransformer
from poptransformer.runtime import artefact
artefact._graphs = lambda compiled: os.kill(os.getpid(), signal.SIGKILL)
poptransformer.load(sys.argv[1]).save(sys.argv[2])
"""


def test_a_killed_process_leaves_no_model() -> None:
    folder = tiny.new_folder() / "model"
    done = subprocess.run([sys.executable, "-c", KILLED, str(tiny.saved()), str(folder)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert not any(artefact.is_artefact(path) for path in folder.parent.iterdir())
    assert works(tiny.engine().save(folder))
