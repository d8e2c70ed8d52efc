# SPDX-License-Identifier: Apache-2.0
"""Saved models with packed weights: valid ONNX, and the same numbers in plain onnxruntime as here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import poptransformer
from poptransformer import native
from poptransformer.engine import Engine
from poptransformer.runtime import SessionSettings
from tests.unit.graph.test_saved_models import FAMILIES, QUANTIZED, proto
from tests.unit.runtime import tiny
from tests.unit.runtime.test_portable import LENGTHS, Request, ask, ids, lengths, rows

FILES = ["model.onnx", "decoder.onnx", "generator.onnx", "sampler.onnx"]
SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"precision": "int8"},
    "int8-channel": {"precision": {"*": "int8"}, "quantization": {"int8_block": "channel"}},
    "int4": {"precision": "int4"},
    "int4-symmetric": {"precision": {"*": "int4"}, "quantization": {"int4_symmetric": True, "int4_block": 64}},
    "fp8": {"precision": "fp8"},
    "fp8-ipu": {"precision": "fp8", "quantization": {"fp8_convention": "ipu"}},
    "fp8_weight": {"precision": {"*": "fp8_weight"}},
    "fp8_weight-e5m2": {"precision": "fp8_weight", "quantization": {"fp8_format": "e5m2", "fp8_scale": "tensor"}},
    "recipe": {"precision": {"lm_head*": "int8", "*mlp*": "int4", "*attn*": "fp8_weight", "*": "fp16"}},
    "recipe-unfused": {"precision": {"lm_head*": "int4", "*mlp*": "fp8", "*": "bf16"}, "fuse": False},
    "int8-tied": {"precision": "int8", "tied": True},
    "int4-tied": {"precision": "int4", "tied": True},
    "int4-fp8_cache": {"precision": "int4", "fp8_cache": True},
}
PROMPT = tiny.PROMPTS[0]


@functools.cache
def saved(family: str, name: str) -> Path:
    settings = dict(SETTINGS[name])
    checkpoint = tiny.folder(family, tied=settings.pop("tied", False))
    return poptransformer.load(checkpoint, **settings).save(tiny.new_folder(name) / "model")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SETTINGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("file", FILES)
def test_full_check(family: str, name: str, file: str) -> None:
    onnx.checker.check_model(str(saved(family, name) / file), full_check=True)


@pytest.mark.parametrize("file", FILES)
def test_strict_shape_inference(family: str, name: str, file: str) -> None:
    source, target = saved(family, name) / file, tiny.new_folder("inferred") / file
    onnx.shape_inference.infer_shapes_path(str(source), str(target), check_type=True, strict_mode=True, data_prop=True)
    inferred = onnx.load(target, load_external_data=False)
    assert [value.name for value in inferred.graph.output] == [value.name for value in proto(source).graph.output]


def test_the_saved_models_use_every_function() -> None:
    used = {f.name for family in FAMILIES for name in SETTINGS for f in proto(saved(family, name) / FILES[0]).functions}
    assert used >= QUANTIZED


def requests(engine: Engine) -> tuple[Request, ...]:
    """The logits of a prompt; answers to several."""
    count = len(PROMPT)
    caches = {
        state.past: (np.zeros([{"batch": 1, "slots": count}.get(d, d) for d in state.shape]).tolist(), state.dtype)
        for state in engine.runtime.compiled.info.states
    }
    step = {"past_lengths": ([0], "int64"), "logit_positions": ([list(range(count))], "int64")}
    return (
        ("model.onnx", ids(PROMPT) | lengths(count) | step | caches),
        ("generator.onnx", ids(*tiny.PROMPTS) | lengths(*LENGTHS) | {"max_new_tokens": ([6], "int64")}),
    )


@pytest.mark.parametrize("library", [False, True], ids=["bodies", "kernels"])
def test_plain_onnxruntime_gives_the_same(family: str, name: str, library: bool) -> None:
    path = native.library_path()
    if library and not native.available():
        pytest.skip("the custom ops are not built: run `make`")
    here = poptransformer.load(saved(family, name))
    here = Engine(here.runtime.compiled, here.checkpoint, SessionSettings(use_native=library))
    step, answers = ask(saved(family, name), *requests(here), library=path if library else "")
    np.testing.assert_allclose(np.array(step["logits"]), here.logits(PROMPT), atol=1e-5, rtol=0)
    assert rows(answers) == here.generate(tiny.PROMPTS, max_new_tokens=6)
