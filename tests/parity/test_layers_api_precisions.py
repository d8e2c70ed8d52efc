# SPDX-License-Identifier: Apache-2.0
"""Graph layers of the layers API in every precision, against the torch layers with the dequantized weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from poptransformer import layers, nn
from poptransformer.build import Build
from poptransformer.graph import Graph
from poptransformer.program import Program
from poptransformer.program_graph import build_program
from poptransformer.recipe import QuantizationConfig
from poptransformer.runtime import SessionSettings
from poptransformer.validation import validate
from tests.parity.dequantized import roundings, with_weights_of
from tests.parity.layers_api import BIASED, declare, masks

B, L, S, D, N = 4, 6, 5, 256, 4  # every share of 2 or 4 replicas ends where blocks of 32 do
SIZES = {"d_model": D, "nhead": N, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 384, **BIASED}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    "int8": ("int8", {}),
    "int8 by channel": ("int8", {"int8_block": "channel"}),
    "int4": ("int4", {}),
    "int4 of 64": ("int4", {"int4_block": 64, "int4_symmetric": True}),
    "fp8": ("fp8", {}),
    "fp8 of the IPU": ("fp8", {"fp8_convention": "ipu", "fp8_scale": "tensor"}),
    "fp8_weight": ("fp8_weight", {"fp8_format": "e5m2"}),
    "recipe": ({"*.ffn.*": "int4", "*multihead_attn*": "fp8_weight", "encoder.*": "bf16"}, {}),
}
# What kernels of integer products add: inputs rounded to 8 bits, relative to the result.
ROUNDED_INPUTS = 0.02


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    found = nn.Transformer(**SIZES)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)  # biases and norms too
    return found.eval()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, memory = torch.randn(B, S, D, generator=generator), torch.randn(B, L, D, generator=generator)
    return {"x": x, "memory": memory, "attn_mask": masks("causal")["attn_mask"]}


def make(graph: Graph) -> Mapping[str, ir.Value]:
    values = declare(graph, inputs())
    built = layers.Transformer(None, None, **SIZES)
    return {"y": built(graph, values["x"], values["memory"], tgt_mask=values["attn_mask"])}


def compiled(model: Any, case: str, **options: Any) -> Program:
    precision, details = CASES[case]
    state = nn.as_state_dict(model)
    return Program.compile(make, state, precision=precision, quantization=details, threads=1, **options)


def result(program: Program) -> np.ndarray:
    return program.run({name: value.numpy() for name, value in inputs().items()})["y"]


def expected(model: Any, plain: Program | None) -> np.ndarray:
    """What torch computes, with the weights of a program and its rounding of inputs where there is one."""
    other = model if plain is None else with_weights_of(model, plain)
    given = inputs()
    with torch.no_grad():
        return other(given["x"], given["memory"], tgt_mask=given["attn_mask"]).numpy()


@pytest.mark.parametrize("case", CASES)
def test_dequantized_weights(model: Any, case: str) -> None:
    plain = compiled(model, case, fuse=False)
    reference = expected(model, plain)
    assert 1e-4 < np.abs(reference - expected(model, None)).max() < 2, "it is another model, but not any"
    may_tip = bool(roundings(plain.model.graph))
    bodies = dataclasses.replace(plain, settings=SessionSettings(use_native=False, threads=1))
    assert_near(result(bodies), reference, may_tip)
    fast = result(compiled(model, case))
    if any(weight.stored.startswith("int") for weight in plain.report.weights):
        assert np.linalg.norm(fast - reference) < ROUNDED_INPUTS * np.linalg.norm(reference)
    else:
        assert_near(fast, reference, may_tip)


def assert_near(found: np.ndarray, reference: np.ndarray, may_tip: bool) -> None:
    """Equal to 1e-4; an input halfway between two 8-bit floats may tip, and change its row of the batch."""
    errors = np.abs(found - reference).max((1, 2))
    if not may_tip:
        assert errors.max() < 1e-4
    assert np.median(errors) < 1e-4 and np.linalg.norm(found - reference) < 0.05 * np.linalg.norm(reference)


@pytest.mark.parametrize(("case", "replicas"), [(case, 2 + 2 * (index % 2)) for index, case in enumerate(CASES)])
def test_replicas_with_the_dequantized_weights_of_their_shares(model: Any, case: str, replicas: int) -> None:
    plan = {"model_type": "tp", "num_replicas": replicas}
    plain = compiled(model, case, fuse=False, **plan)
    reference = expected(model, plain)
    found = result(compiled(model, case, **plan))
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    if roundings(plain.model.graph):
        assert error < 0.1  # a replica rounds its columns of an input by their own maximum
    elif any(weight.stored.startswith("int") for weight in plain.report.weights):
        assert error < ROUNDED_INPUTS
    else:
        np.testing.assert_allclose(found, reference, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("case", "replicas"), [(case, 1 + index % 2) for index, case in enumerate(CASES)])
def test_validation_knows_what_the_weights_will_take(model: Any, case: str, replicas: int) -> None:
    precision, details = CASES[case]
    plan = {"model_type": "tp", "num_replicas": replicas}
    build = Build(
        state_dict=nn.as_state_dict(model),
        precision=precision,
        quantization=QuantizationConfig.from_mapping(details),
        **plan,
    )
    found = validate(build_program(make, build).model, build.recipe)
    stored = compiled(model, case, fuse=False, **plan).model.graph.initializers.items()
    assert found.weight_bytes == sum(value.const_value.nbytes for name, value in stored if "const_" not in name)
