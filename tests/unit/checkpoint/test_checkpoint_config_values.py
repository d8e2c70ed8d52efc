# SPDX-License-Identifier: Apache-2.0
"""Wrong values in a config.json: one sentence that names key, file, what was found and what is expected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import poptransformer
from poptransformer.checkpoint import CorruptCheckpointError, HFConfig
from poptransformer.errors import PopTransformerError
from tests.unit.runtime import tiny

SIZES = {
    "gpt2": ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner"],
    "llama": [
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"),
        *("max_position_embeddings", "vocab_size", "head_dim"),
    ],
}
OPTIONAL = {"n_inner", "num_key_value_heads", "head_dim", "max_position_embeddings"}
NO_SIZES: list[Any] = [-1, 0, "12", 1.5, True, [2], {"a": 1}, 1e30, float("nan"), 10**30]
OTHERS = [
    ("gpt2", "layer_norm_epsilon", [-1, "1e-5", [2], True, float("nan"), float("inf")], "a number of at least 0"),
    ("llama", "rms_norm_eps", [-1e-6, "1e-5", {}, False, float("inf")], "a number of at least 0"),
    ("gpt2", "scale_attn_weights", [1, "true", [True]], "true or false"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", [0, "false"], "true or false"),
    ("llama", "tie_word_embeddings", [1, "false"], "true or false"),
    ("llama", "attention_bias", [1, "no"], "true or false"),
    ("gpt2", "activation_function", [5, ["gelu"], True], "a name"),
    ("llama", "hidden_act", [5, {}], "a name"),
    ("llama", "model_type", [5, ["llama"]], "a name"),
    ("llama", "eos_token_id", ["2", 1.5, {"a": 1}, [1, "2"], True], "a token id or a list of them"),
]


def checkpoint(family: str, **changes: Any) -> Path:
    """A checkpoint with another config.json, and without generation_config.json."""
    folder = tiny.new_folder("config")
    for path in tiny.folder(family).iterdir():
        if path.name != "generation_config.json":
            shutil.copy(path, folder)
    tiny.edit_json(folder / "config.json", **changes)
    return folder


def refused(family: str, key: str, value: Any, expected: str) -> None:
    folder = checkpoint(family, **{key: value})
    with pytest.raises(CorruptCheckpointError) as error:
        poptransformer.load(folder)
    assert str(error.value).startswith(f"{key} in {folder / 'config.json'} is ")
    assert str(error.value).endswith(f"; expected {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in SIZES.items() for key in keys])
def test_sizes_are_positive_integers(family: str, key: str, value: Any) -> None:
    refused(family, key, value, f"an integer from 1 to {65536 if key == 'head_dim' else 2**31 - 1}")


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in SIZES.items() for key in keys])
def test_null_is_taken_where_there_is_a_default(family: str, key: str) -> None:
    if key == "num_key_value_heads":  # without it there are as many as heads, which is another model
        with pytest.raises(
            PopTransformerError, match=r"k_proj\.weight' .* has shape \[16, 32\], .* expects \[32, 32\]"
        ):
            poptransformer.load(checkpoint(family, **{key: None}))
    elif key in OPTIONAL:
        prompt = list(tiny.PROMPTS[0])
        engine = poptransformer.load(checkpoint(family, **{key: None}), max_length=64)
        assert engine.generate(prompt, max_new_tokens=4) == tiny.reference_ids(prompt, 4, family)
    else:
        with pytest.raises(CorruptCheckpointError, match=f"{key} in .* is null; expected an integer from 1 to"):
            poptransformer.load(checkpoint(family, **{key: None}))


@pytest.mark.parametrize(
    ("family", "key", "value", "expected"),
    [(family, key, value, expected) for family, key, found, expected in OTHERS for value in found],
)
def test_other_values(family: str, key: str, value: Any, expected: str) -> None:
    refused(family, key, value, expected)


def test_numbers_need_no_point() -> None:
    """JSON writers may leave it out; transformers takes both."""
    ids = list(tiny.PROMPTS[0])
    one = poptransformer.load(checkpoint("llama", rms_norm_eps=1)).logits(ids)
    assert (one == poptransformer.load(checkpoint("llama", rms_norm_eps=1.0)).logits(ids)).all()


ROPES: list[tuple[Any, str]] = [
    ({"rope_type": "default", "rope_theta": "10000"}, "rope_theta in .* is '10000'; expected a number above 0"),
    ({"rope_type": "default", "rope_theta": 0}, "rope_theta in .* is 0; expected a number above 0"),
    ({"rope_type": "default", "rope_theta": True}, "rope_theta in .* is True; expected a number above 0"),
    ({"rope_type": ["default"], "rope_theta": 1e4}, r"rope_type in .* is \['default'\]; expected a name"),
    ({"rope_type": "yarm", "rope_theta": 1e4}, "Invalid rope_type yarm, options"),
    ({"rope_type": "linear", "rope_theta": 1e4}, "has no factor; rope_type linear needs it"),
    ({"rope_type": "linear", "rope_theta": 1e4, "factor": -2}, "factor in .* is -2; expected a number above 0"),
    ({"rope_type": "dynamic", "rope_theta": 1e4}, "has no factor; rope_type dynamic needs it"),
    ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8}, "has no low_freq_factor; rope_type llama3 needs it"),
    ([1], r"rope_scaling in .* is \[1\]; expected an object or null"),
]


@pytest.mark.parametrize(("rope", "message"), ROPES, ids=[str(rope) for rope, _ in ROPES])
def test_rotary_parameters(rope: Any, message: str) -> None:
    with pytest.raises(PopTransformerError, match=message):
        poptransformer.load(checkpoint("llama", rope_parameters=rope))


def test_the_generation_config_is_checked_too() -> None:
    folder = checkpoint("llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": {"a": 1}}))
    with pytest.raises(
        CorruptCheckpointError, match=r"eos_token_id in .*generation_config\.json is \{'a': 1\}; expected"
    ):
        poptransformer.load(folder)


def test_what_no_model_computes_with_is_left_alone() -> None:
    raw = {"architectures": 5, "torch_dtype": ["x"], "anything": {"n_layer": -1}, "n_layer": 2}
    config = HFConfig(raw)
    assert dict(config) == raw
    assert (config.n_layer, config.architectures, config.get("missing", 3)) == (2, 5, 3)
