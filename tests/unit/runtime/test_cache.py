# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled models: what hits, what misses, and what damage does."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poptransformer.errors import PopTransformerError
from poptransformer.models import LLAMA2DecModel
from poptransformer.models.base_model import HFModel
from poptransformer.runtime import artefact, cache
from poptransformer.sessions import Session
from tests.unit.runtime import tiny

PROMPT = tiny.PROMPTS[0]


class Cached:
    """A cache folder, and how many graphs were built for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.builds = 0

    def session(self, built: HFModel | None = None, **settings: Any) -> Session:
        """A new session with a new model, as a second start of a program has."""
        options = settings.pop("options", {})
        return tiny.compiled_session(built or tiny.model(**settings), execution_cache_name=str(self.folder), **options)

    def hits(self, built: HFModel | None = None, **settings: Any) -> bool:
        """Whether such a start builds no graph."""
        before = self.builds
        self.session(built, **settings)
        return self.builds == before

    @property
    def entry(self) -> Path:
        (path,) = self.folder.iterdir()
        return path


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cached]:
    cached = Cached(tiny.new_folder() / "cache")
    build = HFModel.build_graph

    def counted(self: HFModel) -> None:
        cached.builds += 1
        build(self)

    monkeypatch.setattr(HFModel, "build_graph", counted)
    yield cached
    shutil.rmtree(cached.folder.parent)


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


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"max_length": 33},
        {"batch_size": 2},
        {"layer_per_ipu": [1, 1]},
        {"outline_blocks": "single_block"},
        {"num_embedding_partitions": 2},
        {"options": {"disable_outlining": True}},
    ],
    ids=str,
)
def test_another_configuration_misses(cached: Cached, change: dict[str, Any]) -> None:
    assert not cached.hits()
    assert not cached.hits(**change)
    assert cached.hits(**change)
    assert cached.hits()  # and both stay


@pytest.mark.parametrize(
    "change",
    [{"topk": 5}, {"seed": 3}, {"max_loop": 3}, {"early_stop": True}, {"stop": ["x"]}, {"num_beams": 2}],
    ids=str,
)
def test_what_is_asked_at_run_time_hits(cached: Cached, change: dict[str, Any]) -> None:
    cached.session()
    assert cached.hits(**change)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_changed_checkpoint_misses(cached: Cached, file: str) -> None:
    folder = Path(shutil.copytree(tiny.folder(), tiny.new_folder() / "checkpoint"))
    assert not cached.hits(tiny.model(folder))
    assert cached.hits(tiny.model(folder))
    stamp = (folder / file).stat().st_mtime_ns + 1_000_000
    os.utime(folder / file, ns=(stamp, stamp))
    assert not cached.hits(tiny.model(folder))


def test_the_same_checkpoint_elsewhere_hits(cached: Cached) -> None:
    cached.session()
    folder = Path(shutil.copytree(tiny.folder(), tiny.new_folder() / "moved"))  # keeps times
    assert cached.hits(tiny.model(folder))


@pytest.mark.parametrize("package", ["onnx", "onnx-ir", "onnxscript", "onnxruntime"])
def test_another_version_of_a_package_misses(cached: Cached, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    cached.session()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == package else version(name))
    assert not cached.hits()


def test_another_source_of_this_package_misses(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tiny.new_folder() / "package"
    shutil.copytree(cache._PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "_PACKAGE", copy)
    cached.session()
    assert cached.hits()
    with (copy / "layers" / "mlp.py").open("a") as file:
        file.write("\n# changed\n")
    assert not cached.hits()


SOURCE = """
from poptransformer.models import LLAMA2DecModel
import blocks

class OwnModel(LLAMA2DecModel):
    def __init__(self, *, power=1, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build_model_graph(self):
        self.remembered = [self.power]  # set while the graph is built: must not change the key
        return blocks.scaled(self.graph, super().build_model_graph(), self.power)
"""
BLOCKS = """
from poptransformer import ops

def scaled(graph, x, power):
    return ops.mul(graph, x, 2.0 ** power)
"""


@pytest.fixture
def own_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a model's two files anew each time, as another process would."""
    folder = tiny.new_folder("own")
    (folder / "own_model.py").write_text(SOURCE)
    (folder / "blocks.py").write_text(BLOCKS)
    monkeypatch.syspath_prepend(str(folder))

    def make(**settings: Any) -> HFModel:
        for name in ("blocks", "own_model"):
            sys.modules.pop(name, None)
        spec = importlib.util.spec_from_file_location("own_model", folder / "own_model.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["own_model"] = module
        spec.loader.exec_module(module)
        tiny_model = tiny.model()
        with tiny.use_build(tiny_model.build):
            return module.OwnModel(hf_model_name=str(tiny.folder()), max_length=32, **settings)

    make.folder = folder  # type: ignore[attr-defined]
    yield make
    for name in ("blocks", "own_model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", ["own_model.py", "blocks.py"])
def test_a_changed_model_file_misses(cached: Cached, own_model: Any, file: str) -> None:
    assert not cached.hits(own_model())
    assert cached.hits(own_model())
    with (own_model.folder / file).open("a") as source:
        source.write("\n# changed\n")
    assert not cached.hits(own_model())


def test_a_models_own_setting_misses(cached: Cached, own_model: Any) -> None:
    cached.session(own_model())
    assert not cached.hits(own_model(power=2))
    assert cached.hits(own_model(power=2))
    logits = [cached.session(own_model(power=p)).engine.logits(PROMPT) for p in (1, 2)]
    assert (logits[1] == 2 * logits[0]).all()
    assert cached.builds == 2


def test_a_model_without_a_file_cannot_be_cached(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's classes: nobody would notice that they have changed."""
    monkeypatch.setitem(sys.modules, "notebook", types.ModuleType("notebook"))
    noted = type("NotedModel", (LLAMA2DecModel,), {"__module__": "notebook"})
    with tiny.use_build(tiny.model().build):
        built = noted(hf_model_name=str(tiny.folder()))
    with pytest.raises(PopTransformerError, match="NotedModel has no source file.*execution_cache_name=null"):
        cached.session(built)
    tiny.compiled_session(built)


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
        patch.setattr(artefact, "_write_weights", disk_full)
        with pytest.raises(PopTransformerError, match="No space left on device. Free some disk space"):
            cached.session()
    assert os.listdir(cached.folder) == []
    cached.session()


def test_a_folder_of_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    home = tiny.new_folder("home")
    monkeypatch.setenv("HOME", str(home))
    tiny.compiled_session(tiny.model(), execution_cache_name="~/cache")
    assert os.listdir(home) == ["cache"]
