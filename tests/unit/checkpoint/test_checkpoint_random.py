# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import train_tokenizer, write_folder

from poptransformer.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    ShapeMismatchError,
    random_checkpoint,
)

pytestmark = pytest.mark.unit

TENSORS = {"w": np.arange(4, dtype=np.float32)}


def test_random_weights_depend_on_key_and_seed_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"model_type": "llama", "initializer_range": 0.05, "eos_token_id": 2}
    with caplog.at_level(logging.INFO, logger="poptransformer"):
        first = random_checkpoint(config, seed=1).state_dict
        a = first.get_tensor("model.a.weight", [64, 32])
        b = first.get_tensor("model.b.weight", [32])
    assert [record.message for record in caplog.records if "random" in record.message] == [
        "using random weights (seed 1, std 0.05): random weights for the given configuration"
    ]
    other = random_checkpoint(config, seed=1).state_dict
    np.testing.assert_array_equal(other.get_tensor("model.b.weight", [32]), b)
    np.testing.assert_array_equal(other.get_tensor("model.a.weight", [64, 32]), a)
    np.testing.assert_array_equal(first["model.a.weight"], a)
    assert a.dtype == np.float32 and abs(a.std() - 0.05) < 0.005
    assert not np.array_equal(random_checkpoint(config, seed=2).state_dict.get_tensor("model.a.weight", [64, 32]), a)
    assert random_checkpoint(config).fingerprint != random_checkpoint(config, seed=1).fingerprint
    assert random_checkpoint(config).fingerprint == random_checkpoint(dict(config)).fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.norm.weight", 1),
        ("model.layers.0.input_layernorm.weight", 1),
        ("transformer.h.0.ln_1.weight", 1),
        ("transformer.h.0.ln_1.bias", 0),
        ("rwkv.blocks.0.ln1.weight", 1),
        ("rwkv.blocks.0.pre_ln.weight", 1),
        ("model.layers.0.self_attn.q_proj.bias", 0),
    ],
)
def test_random_norms_and_biases_are_plain(key: str, value: float) -> None:
    array = random_checkpoint({}).state_dict.get_tensor(key, [5])
    np.testing.assert_array_equal(array, np.full(5, value))


def test_random_state_dict_has_every_key() -> None:
    state = random_checkpoint({}).state_dict
    assert "any.weight" in state and len(state) == 0 and state.renamed(str.upper) is state
    with pytest.raises(CheckpointError, match="does not know the shape of 'any.weight'"):
        state["any.weight"]
    state.get_tensor("any.weight", [2, 3])
    assert list(state) == ["any.weight"] and state.shape("any.weight") == (2, 3)
    with pytest.raises(ShapeMismatchError):
        state.get_tensor("any.weight", [3, 2])
    fixed = state.updated({"w": np.ones(3)})
    assert fixed.get_tensor("w", [3]).tolist() == [1, 1, 1] and fixed.get_tensor("v", [1]).shape == (1,)


def test_random_from_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, TENSORS, hidden_size=8)
    train_tokenizer("bytes").save(str(folder / "tokenizer.json"))
    for config in (folder, folder / "config.json", str(folder / "config.json")):
        checkpoint = random_checkpoint(config, tokenizer_from=folder)
        assert checkpoint.config.hidden_size == 8 and checkpoint.tokenizer.encode("the fox")
    assert not random_checkpoint(folder).has_tokenizer
    with pytest.raises(CheckpointNotFoundError, match=r"nope\.json is not there"):
        random_checkpoint(tmp_path / "nope.json")
    with pytest.raises(CheckpointError, match="initializer_range .* expected a number"):
        random_checkpoint({"initializer_range": "wide"})
