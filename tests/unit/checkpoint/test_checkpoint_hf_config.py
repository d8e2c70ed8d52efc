# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from poptransformer.checkpoint import CorruptCheckpointError, HFConfig, MissingConfigKeyError

pytestmark = pytest.mark.unit


def test_mapping_and_attribute_access(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 8, "rope_scaling": null}')
    config = HFConfig.from_file(path)
    assert config.hidden_size == config["hidden_size"] == 8
    assert config.rope_scaling is None and config.get("nope", 3) == 3 and "nope" not in config
    assert dict(config) == config.raw and len(config) == 2
    assert getattr(config, "nope", 7) == 7 and not hasattr(config, "nope")
    with pytest.raises(MissingConfigKeyError, match=rf"{path} has no 'hiden_size'; nearest keys: 'hidden_size'"):
        _ = config.hiden_size
    with pytest.raises(KeyError):
        config["nope"]
    with pytest.raises(AttributeError, match="read-only"):
        config.hidden_size = 9
    assert copy.deepcopy(config).hidden_size == pickle.loads(pickle.dumps(config)).hidden_size == 8


@pytest.mark.parametrize("text", ["{", "[1]", "\ufeff{", "null", "[" * 100000])
def test_damaged_json_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CorruptCheckpointError, match=str(path)):
        HFConfig.from_file(path)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        ),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {"rope_type": "llama3", **LLAMA3},
                "max_position_embeddings": 131072,
            },
            {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, "rope_theta": 1.0},
            {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "partial_rotary_factor": 0.5},
            {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "partial_rotary_factor": 0.5},
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 4096},
            {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 4096,
            },
        ),
    ],
)
def test_rope_merges_every_spelling(raw: dict, expected: dict) -> None:
    assert HFConfig(raw).rope() == expected


def test_rope_refuses_what_it_cannot_merge() -> None:
    with pytest.raises(CorruptCheckpointError, match="differ between layer types"):
        HFConfig({"rope_parameters": {"full": {"rope_theta": 1.0}, "sliding": {"rope_theta": 2.0}}}).rope()
    with pytest.raises(CorruptCheckpointError, match="expected an object or null"):
        HFConfig({"rope_scaling": "linear"}).rope()


def test_rope_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for raw in (
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "llama3", **LLAMA3},
            "max_position_embeddings": 131072,
        },
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 123.0},
    ):
        theirs = dict(transformers.LlamaConfig(**copy.deepcopy(raw)).rope_parameters)
        theirs.pop("type", None)
        assert HFConfig(raw).rope() == theirs
