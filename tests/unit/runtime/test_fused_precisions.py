# SPDX-License-Identifier: Apache-2.0
"""Fused models of every precision: the same logits as unfused ones, and files that ONNX's own checks accept."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

import poptransformer
from poptransformer.engine import Engine
from poptransformer.runtime import SessionSettings
from tests.unit.runtime import tiny

FAMILIES = ["llama", "gpt2"]
PRECISIONS = ["fp16", "bf16", "int8", "int4", "fp8", "fp8_weight"]
IDS = [tiny.PROMPTS[0]]


@functools.cache
def engines(family: str, precision: str) -> tuple[Engine, Engine]:
    """Fused and unfused."""
    fused, plain = (poptransformer.load(tiny.folder(family), precision, fuse=fuse) for fuse in (True, False))
    return fused, plain


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_native", [True, False], ids=["kernels", "bodies"])
def test_logits_are_those_of_the_plain_graph(family: str, precision: str, use_native: bool) -> None:
    settings = SessionSettings(use_native=use_native)
    fused, plain = (Engine(e.runtime.compiled, e.checkpoint, settings) for e in engines(family, precision))
    np.testing.assert_allclose(fused.logits(IDS), plain.logits(IDS), atol=1e-4, rtol=0)
    assert fused.generate(IDS, max_new_tokens=8) == plain.generate(IDS, max_new_tokens=8)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_files_are_valid_and_give_the_same(family: str, precision: str) -> None:
    fused, _ = engines(family, precision)
    folder = fused.save(tiny.new_folder("fused") / "model")
    for file in ("model.onnx", "generator.onnx"):
        onnx.checker.check_model(str(folder / file), full_check=True)
        target = tiny.new_folder("inferred") / "model.onnx"
        options = {"check_type": True, "strict_mode": True, "data_prop": True}
        onnx.shape_inference.infer_shapes_path(str(folder / file), str(target), **options)
    opened = poptransformer.load(folder)
    np.testing.assert_allclose(opened.logits(IDS), fused.logits(IDS), atol=1e-4, rtol=0)
    params = opened.params(IDS, max_new_tokens=8)
    in_one_call = opened.runtime.generate(IDS, params, opened.stop_token_ids)
    assert in_one_call == fused.generate(IDS, max_new_tokens=8)
