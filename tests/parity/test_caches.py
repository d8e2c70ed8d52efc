# SPDX-License-Identifier: Apache-2.0
"""Keys and values in 32, 16 and 8 bits, against PyTorch models that attend to equally rounded ones."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import poptransformer
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError
from poptransformer.generation import Rows, arrays, sampling_rows
from tests.parity.dequantized import MODELS, Case, bodies, checkpoint, dequantized, load
from tests.parity.stored_caches import reference_logits, run, values

IDS = np.arange(12, 35)
RECIPE = {"lm_head*": "int8", "*mlp*": "int4", "*": "fp16"}
CASES = [
    (Case("fp32", "fp32"), "float32"),
    (Case("fp16", "fp16"), "float32"),
    (Case("bf16", "bf16"), "float32"),
    (Case("int8", "int8"), "float16"),
    (Case("int4", "int4"), "float16"),
    (Case("fp8", "fp8"), "float16"),
    (Case("fp8_weight", {"*": "fp8_weight"}), "float16"),
    (Case("recipe", RECIPE), "float16"),
    (Case("float-recipe", {"lm_head*": "bf16", "*": "fp16"}), "float32"),
    (Case("fp32-fp8_cache", "fp32", fp8_cache=True), "uint8"),
    (Case("fp16-fp8_cache", "fp16", fp8_cache=True), "uint8"),
    (Case("int4-fp8_cache", "int4", fp8_cache=True), "uint8"),
    (Case("fp8_weight-fp8_cache", {"*": "fp8_weight"}, fp8_cache=True), "uint8"),
    (Case("recipe-fp8_cache", RECIPE, fp8_cache=True), "uint8"),
]
by_case = pytest.mark.parametrize(("case", "dtype"), CASES, ids=[case.name for case, _ in CASES])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(params=[name for name in MODELS if not name.startswith("rwkv")])
def model(request: pytest.FixtureRequest, root: Path) -> tuple[Any, Path]:
    return checkpoint(request.param, root)


@by_case
def test_the_precision_decides_unless_8_bits_are_asked_for(model: tuple[Any, Path], case: Case, dtype: str) -> None:
    engine = load(model[1], case)
    session = engine.runtime.step_session
    kinds = {"float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)"}
    for found in (session.get_inputs(), session.get_outputs()):
        types = {value.type for value in found if value.name.startswith(("past_key_values.", "present."))}
        assert types == {kinds[dtype]}
    # and it runs: step by step, in one call, and with beams
    rows = [IDS[:9].tolist(), IDS[3:5].tolist(), [7]]
    answer = engine.generate(rows, max_new_tokens=6)
    assert engine.runtime.generate(rows, engine.params(rows, max_new_tokens=6), engine.stop_token_ids) == answer
    if case.name != "fp8":  # its rounding of activations may tip with the number of rows: sums end in other bits
        beams = engine.generate(rows, max_new_tokens=6, num_beams=3)
        assert beams == [engine.generate(row, max_new_tokens=6, num_beams=3) for row in rows]


@by_case
@pytest.mark.parametrize("pieces", [(), (8, *[1] * 15), (3, 9, 1, 10)], ids=["prefill", "decode", "pieces"])
def test_logits(model: tuple[Any, Path], case: Case, dtype: str, pieces: tuple[int, ...]) -> None:
    """Each stored number is PyTorch's own, rightly rounded; attention to the stored numbers is PyTorch's."""
    torch_model, folder = model
    engine, reference = load(folder, case), dequantized(torch_model, load(folder, case, fuse=False))
    for running in _exact(engine):
        found = run(running, IDS, pieces)
        assert {stored.dtype.name for layer in found.caches for stored in layer} == {dtype}
        expected = reference_logits(reference, IDS, found.caches)
        np.testing.assert_allclose(found.logits, expected, atol=1e-4, rtol=0)


def _exact(engine: Engine) -> list[Engine]:
    """The engine on the function bodies, and on kernels where those round no activations to int8."""
    integers = any(weight.stored.startswith("int") for weight in engine.quantization_report.weights)
    return [bodies(engine)] if integers else [bodies(engine), engine]


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("uint8", 4)])
def test_rounding_changes_what_its_bits_explain(model: tuple[Any, Path], dtype: str, bits: int) -> None:
    """The first layer's cache: nothing before it differs. Half a step of a number with that many bits, relatively."""
    folder = model[1]
    behind = "*h.1.mlp*" if "gpt2" in folder.name else "*layers.1.mlp*"  # a packed weight makes caches take 16 bits
    settings: dict[str, Any] = {"fp8_cache": True} if dtype == "uint8" else {"precision": {behind: "int8"}}
    exact, rounded = (run(poptransformer.load(folder, max_length=64, **s), IDS) for s in ({}, settings))
    for own, stored in zip(exact.caches[0], rounded.caches[0], strict=True):
        assert stored.dtype == dtype
        error = np.abs(values(stored) - own)
        assert (error <= np.abs(own) * 2.0**-bits + 2.0**-10).all()
        assert error.max() > 0
    assert np.abs(exact.logits - rounded.logits).max() > (1e-5 if dtype == "float16" else 1e-2)


def _bytes_of(make: Callable[[], Any]) -> int:
    """Memory that NumPy holds for what `make` returns."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        after = tracemalloc.get_traced_memory()[0]
        del made
    finally:
        tracemalloc.stop()
    return after - before


def _rows(batch: int) -> Rows:
    settings = arrays(sampling_rows(batch, max_new_tokens=1))
    return Rows(settings, np.zeros((batch, 1), np.int64), np.ones(batch, np.int64))


@by_case
def test_caches_take_half_and_a_quarter_of_the_memory(root: Path, case: Case, dtype: str) -> None:
    """Steps and streams allocate what the dtype says, and once: present and past are one buffer."""
    runtime = load(checkpoint("llama-gqa", root)[1], case).runtime
    layers, heads, head_dim, batch, slots = 2, 2, 8, 3, 4096
    expected = 2 * layers * batch * heads * slots * head_dim * {"float32": 4, "float16": 2, "uint8": 1}[dtype]
    rows = _rows(batch)
    _ = runtime.step_session, runtime.decoder_session
    for make in (lambda: runtime.start(batch, slots), lambda: runtime.start_tokens(rows, slots)):
        make()  # what is imported and cached the first time
        assert expected <= _bytes_of(make) < expected + 50_000


@by_case
def test_a_saved_model_keeps_its_caches(model: tuple[Any, Path], case: Case, dtype: str, tmp_path: Path) -> None:
    engine = load(model[1], case)
    folder = engine.save(tmp_path / "model")
    for asked in (None, case.fp8_cache):
        copy = poptransformer.load(folder, fp8_cache=asked)
        found, expected = run(copy, IDS), run(engine, IDS)
        np.testing.assert_array_equal(found.logits, expected.logits)
        for layer, other in zip(found.caches, expected.caches, strict=True):
            for stored, kept in zip(layer, other, strict=True):
                assert stored.dtype == kept.dtype == dtype
                np.testing.assert_array_equal(stored, kept)
        assert copy.generate(IDS[:5].tolist(), max_new_tokens=6) == engine.generate(IDS[:5].tolist(), max_new_tokens=6)
    problem = f"was saved with fp8_cache {case.fp8_cache}, not {not case.fp8_cache}. Load it without fp8_cache"
    with pytest.raises(ConfigError, match=problem):
        poptransformer.load(folder, fp8_cache=not case.fp8_cache)


def test_the_reference_rejects_what_is_not_rounded_right(model: tuple[Any, Path]) -> None:
    """The comparison above can fail: one code beside the right one does it."""
    engine = poptransformer.load(model[1], max_length=64, fp8_cache=True)
    found = run(engine, IDS)
    reference_logits(model[0], IDS, found.caches)
    key = found.caches[1][0]
    place = np.unravel_index(np.abs(values(key)).argmax(), key.shape)
    key[place] -= 1
    with pytest.raises(AssertionError):
        reference_logits(model[0], IDS, found.caches)


def test_codes_are_those_of_pytorch_and_ml_dtypes() -> None:
    """The two read all bytes alike, so either may stand for E4M3FN here."""
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32), expected)
