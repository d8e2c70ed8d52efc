# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with weights that are no numbers, or no floats: one sentence that says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import poptransformer
from poptransformer import native
from poptransformer.errors import PopTransformerError
from tests.unit.runtime import tiny

UP, NORM, HEAD = "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"
PROMPT = list(tiny.PROMPTS[0])


def checkpoint(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    folder = tiny.new_folder("weights")
    shutil.copytree(tiny.folder(), folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    tensors[key] = change(tensors[key].clone()).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[3] = value
        return weight

    return change


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("key", [UP, NORM, HEAD, "model.embed_tokens.weight"])
def test_integers(key: str, dtype: torch.dtype) -> None:
    folder = checkpoint(key, lambda weight: weight.to(dtype))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(PopTransformerError, match=f"weight '{key}' of .* holds {name} values; expected floats"):
        poptransformer.load(folder)


def test_doubles_are_floats() -> None:
    folder = checkpoint(UP, torch.Tensor.double)
    assert poptransformer.load(folder).generate(PROMPT, max_new_tokens=12) == tiny.reference_ids(PROMPT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", [UP, HEAD])
@pytest.mark.parametrize("precision", ["int8", "int4", "fp8_weight"])
def test_what_no_quantized_format_can_store(key: str, value: float, precision: str) -> None:
    with pytest.raises(PopTransformerError, match=rf"{key} holds {value} in row 0, column 3"):
        poptransformer.load(checkpoint(key, with_value(value)), precision)


@pytest.mark.skipif(not native.available(), reason="the custom ops are not built: run `make`")
@pytest.mark.parametrize(
    ("key", "precision", "value"),
    [(key, "fp32", value) for key in (UP, NORM) for value in (float("nan"), float("inf"))]
    + [(HEAD, "fp32", float("nan")), (NORM, "int4", float("nan"))],
)
def test_weights_that_are_not_read_before_they_are_used(key: str, precision: str, value: float) -> None:
    """The file is mapped, so the first answer shows it, however it is asked for."""
    engine = poptransformer.load(checkpoint(key, with_value(value)), precision)
    message = r"The model's logits must be finite numbers, found -?(nan|inf) in row 0.*check the checkpoint\.$"
    params = engine.params([PROMPT], max_new_tokens=3)
    with pytest.raises(PopTransformerError, match=message):
        engine.generate(PROMPT, max_new_tokens=3)
    with pytest.raises(PopTransformerError, match="logits must be finite numbers"):
        engine.generate(PROMPT, max_new_tokens=3, num_beams=2)
    with pytest.raises(PopTransformerError, match=message):
        list(engine.stream(PROMPT, max_new_tokens=3))
    with pytest.raises(PopTransformerError, match=message):
        engine.runtime.generate([PROMPT], params, engine.stop_token_ids)
    with pytest.raises(PopTransformerError, match=message):
        settings = poptransformer.generation.arrays(params)
        engine.runtime.sample(engine.logits(PROMPT)[:, -1], np.array([PROMPT]), settings, np.zeros(1, np.int64))
