# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose config and tensors do not agree on whether the head is tied; transformers is the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import poptransformer
from tests.parity.conftest import scaled
from tests.parity.variants import VARIANTS

IDS = np.arange(1, 20)
MAKERS = {variant.name: variant.make for variant in VARIANTS}


def head_of(name: str) -> str:
    """What the head's weight is called."""
    return "head.weight" if name.startswith("rwkv") else "lm_head.weight"


def compare(folder: Path, model_class: Any) -> None:
    reference = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.from_numpy(IDS)[None]).logits[0].numpy()
    np.testing.assert_allclose(poptransformer.load(folder).logits(IDS)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "tie"), [("gpt2-untied", None), ("gpt2-untied", True), ("llama-gqa", True), ("rwkv", True)]
)
def test_a_stored_head_counts_even_where_the_config_ties_it(
    name: str, tie: bool | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = scaled(MAKERS[name]())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    if tie is not None:
        config["tie_word_embeddings"] = tie
    (tmp_path / "config.json").write_text(json.dumps(config))
    compare(tmp_path, type(model))
    assert f"using {head_of(name)} as it is stored" in caplog.text


@pytest.mark.parametrize(
    ("name", "embedding"),
    [
        ("gpt2", "transformer.wte.weight"),
        ("llama-biases-tied", "model.embed_tokens.weight"),
        ("rwkv-tied-sharded-fp16", "rwkv.embeddings.weight"),
    ],
)
@pytest.mark.parametrize("both", [False, True], ids=["head only", "both, equal"])
def test_a_tied_table_under_the_name_of_the_head(name: str, embedding: str, both: bool, tmp_path: Path) -> None:
    make: Callable[[], Any] = MAKERS[name]
    model = scaled(make())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[head_of(name)] = tensors[embedding].clone() if both else tensors.pop(embedding)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    compare(tmp_path, type(model))


@pytest.mark.parametrize("name", ["gpt2", "llama-biases-tied", "rwkv-tied-sharded-fp16"])
def test_a_checkpoint_of_the_bare_model(name: str, tmp_path: Path) -> None:
    model = scaled(MAKERS[name]())
    model.base_model.save_pretrained(tmp_path)
    compare(tmp_path, type(model))
