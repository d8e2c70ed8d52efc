# SPDX-License-Identifier: Apache-2.0
"""Folders as transformers' `save_pretrained` writes them, and torch's `.bin` files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poptransformer.checkpoint import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    open_checkpoint,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def as_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def check(folder: Path, model: Any) -> None:
    checkpoint = open_checkpoint(folder)
    expected = {key: value.detach().float().numpy() for key, value in model.state_dict().items()}
    assert checkpoint.state_dict.keys() == expected.keys()
    for key, array in expected.items():
        assert checkpoint.state_dict.shape(key) == array.shape
        np.testing.assert_array_equal(as_float32(checkpoint.state_dict[key]), array)
        assert checkpoint.state_dict[key].dtype == checkpoint.state_dict.dtype(key)
        assert not checkpoint.state_dict[key].flags.writeable
    assert checkpoint.config.hidden_size == 32 and checkpoint.config.model_type == "llama"
    assert checkpoint.generation_config["eos_token_id"] == 2
    assert not checkpoint.has_tokenizer


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
def test_safetensors(tmp_path: Path, model: Any, dtype: str, shard_size: str) -> None:
    cast = transformers.LlamaForCausalLM(model.config).to(getattr(torch, dtype))
    cast.load_state_dict(model.state_dict())
    cast.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "10KB")
    check(tmp_path, cast)
    assert str(open_checkpoint(tmp_path).state_dict.dtype("model.norm.weight")) == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("legacy", [False, True])
def test_bin(tmp_path: Path, model: Any, dtype: str, legacy: bool) -> None:
    state = {key: value.to(getattr(torch, dtype)) for key, value in model.state_dict().items()}
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    cast = transformers.LlamaForCausalLM(model.config).to(getattr(torch, dtype))
    cast.load_state_dict(state)
    check(tmp_path, cast)


def test_sharded_bin(tmp_path: Path, model: Any) -> None:
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    names = {}
    for number, key in enumerate(model.state_dict()):
        names[key] = f"pytorch_model-{number % 3}.bin"
    for name in set(names.values()):
        part = {key: value for key, value in model.state_dict().items() if names[key] == name}
        torch.save(part, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    check(tmp_path, model)
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"pytorch_model-1\.bin"):
        open_checkpoint(tmp_path)


class Payload:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"w": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptCheckpointError, match="torch cannot read"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4 half a zip"])
def test_a_damaged_bin(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_a_bin_that_is_no_state_dict(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptCheckpointError, match="does not hold a dictionary of named tensors"):
        open_checkpoint(tmp_path)


def test_a_bin_without_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedCheckpointError, match=r"pip install torch==2\.13\.0.*convert"):
        open_checkpoint(tmp_path)


def test_importing_is_light() -> None:
    heavy = ["torch", "transformers", "tokenizers", "gguf", "jinja2", "huggingface_hub", "onnx", "ml_dtypes"]
    code = f"import sys, poptransformer.checkpoint; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
