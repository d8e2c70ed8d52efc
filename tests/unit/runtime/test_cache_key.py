# SPDX-License-Identifier: Apache-2.0
"""What makes the cache of compiled models hit, and what makes it miss."""

from __future__ import annotations

import importlib.metadata
import importlib.util
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
from poptransformer.runtime import cache
from tests.unit.runtime import tiny
from tests.unit.runtime.cached import Cached

PROMPT = tiny.PROMPTS[0]


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
        {"options": {"fuse": False}},
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
