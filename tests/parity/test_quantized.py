# SPDX-License-Identifier: Apache-2.0
"""Quantized models against PyTorch with the dequantized weights, and with activations rounded where ours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import poptransformer
from tests.parity import stored_caches
from tests.parity.dequantized import MODELS, Case, bodies, checkpoint, dequantized, load

# With fp8, an activation halfway between two floats goes either way with the last bit of a sum: none of these does.
IDS, RWKV_IDS = np.arange(12, 35), np.arange(5, 28)
CASES = [
    Case("int8", "int8"),
    Case("int8-channel", "int8", {"int8_block": "channel"}),
    Case("int4", "int4"),
    Case("int4-asymmetric-64", "int4", {"int4_symmetric": False, "int4_block": 64}),
    Case("fp8_weight", "fp8_weight"),
    Case("fp8_weight-ipu-e5m2", "fp8_weight", {"fp8_convention": "ipu", "fp8_format": "e5m2"}),
    Case("fp8", "fp8"),
    Case("fp8_weight-everywhere", {"*": "fp8_weight"}),
    Case("fp8-everywhere", {"*": "fp8"}),
    Case("fp8-ipu-tensor", "fp8", {"fp8_convention": "ipu", "fp8_scale": "tensor"}),
    Case("recipe", {"lm_head*": "int8", "*mlp*": {"precision": "int4", "int4_block": 64}, "*": "bf16"}),
    Case("recipe-fp8", {"*c_fc*": "fp8", "*up_proj*": "fp8", "*attn*": "int4"}),
]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, root: Path) -> tuple[Any, Path]:
    return checkpoint(request.param, root)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits(model: tuple[Any, Path], case: Case) -> None:
    torch_model, folder = model
    ids = RWKV_IDS if "rwkv" in folder.name else IDS
    engine, reference = load(folder, case), dequantized(torch_model, load(folder, case, fuse=False))
    found = stored_caches.run(bodies(engine), ids)
    expected = stored_caches.reference_logits(reference, ids, found.caches)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found.logits, expected, atol=1e-4, rtol=0)
    if not any(weight.stored.startswith("int") for weight in engine.quantization_report.weights):
        # Kernels of products with integers round their input too; those of 8-bit floats do not.
        found = stored_caches.run(engine, ids)
        expected = stored_caches.reference_logits(reference, ids, found.caches)
        np.testing.assert_allclose(found.logits, expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        exact = torch_model(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(expected - exact).max() > 1e-3  # it is another model


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_saved_model_is_the_same(model: tuple[Any, Path], case: Case, tmp_path: Path) -> None:
    engine = load(model[1], case)
    saved = poptransformer.load(engine.save(tmp_path / "model"))
    assert saved.quantization_report == engine.quantization_report
    assert saved.runtime.compiled.info == engine.runtime.compiled.info
    np.testing.assert_allclose(bodies(saved).logits(IDS), bodies(engine).logits(IDS), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(saved.logits(IDS), engine.logits(IDS))


GENERATED = [case for case in CASES if case.name in ("int8", "int4", "fp8", "recipe")]


@pytest.mark.parametrize("case", GENERATED, ids=str)
def test_all_ways_to_generate_agree(model: tuple[Any, Path], case: Case) -> None:
    engine = load(model[1], case)
    rows = [IDS[:9].tolist(), IDS[3:5].tolist(), [7]]
    for running in (engine, bodies(engine)):
        params = running.params(rows, max_new_tokens=8)
        in_one_call = running.runtime.generate(rows, params, running.stop_token_ids)
        assert in_one_call == running.generate(rows, max_new_tokens=8)
        assert in_one_call == [running.generate(row, max_new_tokens=8) for row in rows]
