# SPDX-License-Identifier: Apache-2.0
"""The shipped configurations: each composes, and holds nothing but known keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from poptransformer.utils import base_config
from poptransformer.utils.prepare import CheckedConfig, check_config

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/inference.py") if (path.parent / "conf").is_dir())
CHOICES = [
    (example, primary.stem, model.stem)
    for example in NAMES
    for primary in sorted((EXAMPLES / example / "conf").glob("*.yaml"))
    for model in sorted((EXAMPLES / example / "conf" / "model").glob("*.yaml"))
]
LAYERS = {
    "gpt2-xl": 48,
    "gpt2-medium": 24,
    "gpt2": 12,
    "llama-2-7b": 32,
    "llama-2-13b": 40,
    "smollm2": 30,
    "rwkv-raven-1b5": 24,
    "rwkv-raven-3b": 32,
    "chatglm-6b": 28,
    "chatglm-6b-int4": 28,
    "chatglm2-6b": 28,
    "chatglm3-6b": 28,
}
# What replicas divide: attention heads, or RWKV's channels.
HEADS = {
    "tiny": 4,
    "gpt2": 12,
    "gpt2-medium": 16,
    "gpt2-xl": 25,
    "smollm2": 3,
    "llama-2-7b": 32,
    "llama-2-13b": 40,
    "rwkv-4-169m": 768,
    "rwkv-4-430m": 1024,
    "rwkv-raven-1b5": 2048,
    "rwkv-raven-3b": 2560,
    "chatglm-6b": 32,
    "chatglm-6b-int4": 32,
    "chatglm2-6b": 2,
    "chatglm3-6b": 2,
}


def composed(example: str, primary: str, *overrides: str) -> CheckedConfig:
    base_config.register()
    with initialize_config_dir(str(EXAMPLES / example / "conf"), version_base="1.3"):
        return check_config(compose(primary, list(overrides)))


def test_the_examples_are_there() -> None:
    assert {"gpt2", "llama2", "rwkv", "chatglm", "chatglm2"} <= set(NAMES)


@pytest.mark.parametrize(("example", "primary", "model"), CHOICES)
def test_every_choice(example: str, primary: str, model: str) -> None:
    config = composed(example, primary, f"model={model}")
    assert config.global_args.model_type == ("tp" if primary == "tp" else "shard")
    assert config.model["hf_model_name"]
    asked = config.inputs.get("input_string_list") or [config.inputs["input_string"]]
    assert all(asked)
    placed = config.model["layer_per_ipu"]
    assert placed is None or sum(placed) == LAYERS[model]
    assert HEADS[model] % config.global_args.num_replicas == 0
    assert len(asked) <= config.global_args.batch_size


def test_the_originals_placements() -> None:
    assert composed("gpt2", "sharding", "model=gpt2-xl").model["layer_per_ipu"] == [0, 6, 7, 7, 7, 7, 7, 7]
    config = composed("llama2", "tp", "model=llama-2-13b")
    assert (config.global_args.num_replicas, config.model["layer_per_ipu"]) == (8, [5] * 8)
    config = composed("rwkv", "tp", "model=rwkv-raven-1b5")
    assert (config.global_args.num_replicas, config.model["layer_per_ipu"]) == (2, [6] * 4)


@pytest.mark.parametrize("example", ["gpt2", "rwkv", "chatglm", "chatglm2"])
def test_the_tiny_model_lies_beside_the_example(example: str) -> None:
    assert composed(example, "sharding").model["hf_model_name"] == str(EXAMPLES / example / "tiny")


def test_chatglms_placements() -> None:
    config = composed("chatglm", "int4_sharding", "model=chatglm-6b-int4")
    assert config.model["hf_model_name"] == "THUDM/chatglm-6b-int4"
    assert config.global_args.precision == "int4"
    assert composed("chatglm", "tp").global_args.num_replicas == 4


def test_every_inference_py_is_the_same() -> None:
    docstring = re.compile(r'^""".*?"""$', re.DOTALL | re.MULTILINE)
    assert len({docstring.sub("", (EXAMPLES / name / "inference.py").read_text(), count=1) for name in NAMES}) == 1
