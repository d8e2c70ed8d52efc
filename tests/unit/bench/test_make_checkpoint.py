# SPDX-License-Identifier: Apache-2.0
"""The random checkpoints of the benchmarks are what Hugging Face's models expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.make_checkpoint import checkpoint_bytes, make_checkpoint
from bench.shapes import CONFIGS, tensors_of
from poptransformer.checkpoint import open_checkpoint

SMALL = {
    "llama": {
        **CONFIGS["llama-1.1b"],
        **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    },
    "gpt2": {**CONFIGS["gpt2-124m"], "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 128},
}


@pytest.fixture(params=SMALL)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SMALL[request.param]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_finds_every_weight(config: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path / "model", config, "fp32")
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_shards(config: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", config, dtype, shard_bytes=40_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    weights = open_checkpoint(folder).state_dict
    assert {name: weights.shape(name) for name in weights} == tensors_of(config)
    assert sum(weights[name].nbytes for name in weights) == checkpoint_bytes(config, dtype)


def test_values(config: dict[str, Any], tmp_path: Path) -> None:
    weights = open_checkpoint(make_checkpoint(tmp_path / "model", config, "fp32")).state_dict
    for name in weights:
        if weights[name].ndim == 1:
            assert set(weights[name]) == {1.0 if name.endswith("weight") else 0.0}
        else:
            assert weights[name].std() == pytest.approx(config["initializer_range"], rel=0.05)
            assert abs(weights[name].mean()) < 0.002


def test_seeds(config: dict[str, Any], tmp_path: Path) -> None:
    first, same, other = (
        contents(make_checkpoint(tmp_path / name, config, seed=seed))
        for name, seed in (("first", 1), ("same", 1), ("other", 2))
    )
    assert first == same
    assert first != other


def test_no_two_tensors_are_alike(config: dict[str, Any], tmp_path: Path) -> None:
    weights = open_checkpoint(make_checkpoint(tmp_path / "model", config)).state_dict
    starts = [tuple(np.ravel(weights[name])[:8].tolist()) for name in weights if weights[name].ndim == 2]
    assert len(set(starts)) == len(starts)


def test_an_existing_folder_is_left_alone(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="exists already"):
        make_checkpoint(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.make_checkpoint.SPARE", 1 << 60)
    with pytest.raises(SystemExit, match="TMPDIR"):
        make_checkpoint(tmp_path / "model", config)
    assert not list(tmp_path.iterdir())
