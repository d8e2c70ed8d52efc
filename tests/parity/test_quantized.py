# SPDX-License-Identifier: Apache-2.0
"""Quantized models against PyTorch with the dequantized weights, and with activations rounded where ours are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

import poptransformer
from poptransformer.engine import Engine
from poptransformer.quantization import FORMATS, PackedWeight
from poptransformer.runtime import SessionSettings, compiled
from tests.parity.conftest import scaled
from tests.parity.variants import VARIANTS

# With fp8, an activation halfway between two floats goes either way with the last bit of a sum: none of these does.
IDS = np.arange(11, 34)
MAKERS: dict[str, Callable[[], Any]] = {variant.name: variant.make for variant in VARIANTS}
MODELS = ["gpt2", "gpt2-untied", "llama-gqa", "llama-biases-tied", "rwkv-rescaled"]
# Patterns of the recipes below, where RWKV's layers go by other names.
RWKV_NAMES = {
    "lm_head*": "head*",
    "*mlp*": "*feed_forward*",
    "*up_proj*": "*feed_forward.key*",
    "*attn*": "*attention*",
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    precision: Any
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


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


@functools.cache
def checkpoint(name: str, folder: Path) -> tuple[Any, Path]:
    """A small random model and its checkpoint."""
    model = scaled(MAKERS[name]())
    model.save_pretrained(folder / name)
    return model, folder / name


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, root: Path) -> tuple[Any, Path]:
    return checkpoint(request.param, root)


def load(folder: Path, case: Case, fuse: bool = True) -> Engine:
    precision = case.precision
    if isinstance(precision, dict) and "recipe-fp8" in case.name:  # of the two names for the same layer, one exists
        other = "*up_proj*" if "gpt2" in folder.name else "*c_fc*"
        precision = {pattern: value for pattern, value in precision.items() if pattern != other}
    if isinstance(precision, dict) and "rwkv" in folder.name:
        precision = {RWKV_NAMES.get(pattern, pattern): value for pattern, value in precision.items()}
    return poptransformer.load(folder, precision=precision, quantization=case.details, max_length=64, fuse=fuse)


def bodies(engine: Engine) -> Engine:
    """The same model on the function bodies."""
    return Engine(engine.runtime.compiled, engine.checkpoint, SessionSettings(use_native=False))


def weights_of(engine: Engine) -> dict[str, np.ndarray]:
    """The values of every weight, by the checkpoint's name; what is packed is dequantized."""
    graph = engine.runtime.compiled.model.graph
    arrays = {name: value.const_value.numpy() for name, value in graph.initializers.items()}
    found = {name: array.astype(np.float32) for name, array in arrays.items() if name.endswith((".weight", ".bias"))}
    for report in engine.quantization_report.packed:
        parts = [arrays.get(f"{report.name}.{part}") for part in ("codes", "scales", "offsets")]
        format, kind, *rest = report.stored.split()
        block = int(rest[0]) if kind == "block" else 0
        assert FORMATS[format].bits == (4 if format == "int4" else 8)
        found[report.name] = PackedWeight(format, *report.shape, block, *parts).dequantize()
    return found


def rounded(x: torch.Tensor, format: str, scaling: str) -> torch.Tensor:
    """What `RoundToFloat8` makes of activations."""
    kind = FORMATS[format]
    scale = np.abs(x.numpy()).max(-1, keepdims=True) / np.float32(kind.largest)
    if scaling == "power_of_two":
        scale = np.exp2(np.ceil(np.log2(scale)))
    narrow = np.clip(x.numpy() / scale, -kind.largest, kind.largest).astype(kind.dtype)
    return torch.from_numpy(narrow.astype(np.float32) * scale)


def reference_logits(model: Any, engine: Engine) -> np.ndarray:
    """PyTorch's logits with the engine's weights, and its rounding of activations."""
    values = weights_of(engine)
    roundings = {
        str(node.name).rpartition("/")[0].replace("/", "."): [
            node.attributes[name].as_string() for name in ("format", "scaling")
        ]
        for node in engine.runtime.compiled.model.graph
        if node.op_type == "RoundToFloat8"
    }
    inputs = {
        str(node.name).rpartition("/")[0].replace("/", "."): str(node.inputs[0].producer().name).rpartition("/")[0]
        for node in engine.runtime.compiled.model.graph
        if node.op_type == "QuantizedLinear" and node.inputs[0].producer().op_type == "RoundToFloat8"
    }
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if not name.endswith((".weight", ".bias")):
                continue  # vectors of RWKV, which no precision touches
            value = values.get(name, values.get("lm_head.weight") if name.startswith("lm_head") else None)
            is_conv = isinstance(copy.get_submodule(name.rpartition(".")[0]), Conv1D) and parameter.ndim == 2
            parameter.copy_(torch.from_numpy(value.T.copy() if is_conv else value))
        for layer, source in inputs.items():
            settings = roundings[source.replace("/", ".")]
            module = copy.get_submodule(layer)
            module.register_forward_pre_hook(
                lambda _, args, settings=settings: (rounded(args[0], *settings), *args[1:])
            )
        return copy.eval()(torch.from_numpy(IDS)[None]).logits[0].numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits(model: tuple[Any, Path], case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fp32 caches, as PyTorch has them: what caches of 16 bits change is tested on its own."""
    monkeypatch.setattr(compiled, "_cache_dtype", lambda model: "float32")
    torch_model, folder = model
    engine = load(folder, case)
    expected = reference_logits(torch_model, load(folder, case, fuse=False))
    assert expected.std() > 0.5
    np.testing.assert_allclose(bodies(engine).logits(IDS)[0], expected, atol=1e-4, rtol=0)
    if not any(weight.stored.startswith("int") for weight in engine.quantization_report.weights):
        # Kernels of products with integers round their input too; those of 8-bit floats do not.
        np.testing.assert_allclose(engine.logits(IDS)[0], expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        exact = torch_model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    assert np.abs(expected - exact).max() > 1e-3  # it is another model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_saved_model_is_the_same(model: tuple[Any, Path], case: Case, tmp_path: Path) -> None:
    engine = load(model[1], case)
    saved = poptransformer.load(engine.save(tmp_path / "model"))
    assert saved.quantization_report == engine.quantization_report
    assert saved.runtime.compiled.info == engine.runtime.compiled.info
    np.testing.assert_allclose(bodies(saved).logits(IDS), bodies(engine).logits(IDS), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(saved.logits(IDS), engine.logits(IDS))


GENERATED = [case for case in CASES if case.name in ("int8", "int4", "fp8", "recipe")]


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case.name)
def test_all_ways_to_generate_agree(model: tuple[Any, Path], case: Case) -> None:
    engine = load(model[1], case)
    rows = [IDS[:9].tolist(), IDS[3:5].tolist(), [7]]
    for running in (engine, bodies(engine)):
        params = running.params(rows, max_new_tokens=8)
        in_one_call = running.runtime.generate(rows, params, running.stop_token_ids)
        assert in_one_call == running.generate(rows, max_new_tokens=8)
        assert in_one_call == [running.generate(row, max_new_tokens=8) for row in rows]
