# SPDX-License-Identifier: Apache-2.0
"""Linformer's graphs in every precision, on replicas and stages, against torch with the dequantized weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from poptransformer import layers, nn
from poptransformer.attention_rules import LINFORMER_STYLES
from poptransformer.build import Build
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.ipu.device import load_device
from poptransformer.planning.program import program_report
from poptransformer.program import Program
from poptransformer.program_graph import build_program
from poptransformer.runtime import SessionSettings
from poptransformer.validation import validate
from tests.parity.dequantized import roundings, with_weights_of
from tests.parity.layers_api import BIASED
from tests.parity.test_layers_api_precisions import CASES, ROUNDED_INPUTS

N, D, n, k = 4, 128, 40, 32  # every share of 2 or 4 replicas ends where blocks of 32 do
LENGTHS = (40, 3, 17, 1, 9)
SIZES = {"d_model": D, "nhead": N, "max_sequence_length": n, "projected_dims": k, "dim_feedforward": 256, **BIASED}
RECIPE = {"*.ffn.*": "int4", "*proj_q*": "fp8_weight", "*proj_e*": "fp16", "layers.0.*": "bf16"}
PRECISIONS = {**CASES, "recipe": (RECIPE, {})}


@functools.cache
def model(style: str) -> Any:
    torch.manual_seed(0)
    layer = nn.LinformerEncoderLayer(**SIZES, attention_style=style, dropout=0.0)
    found = nn.LinformerEncoder(layer, 2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return found.eval()


def x() -> torch.Tensor:
    return torch.randn(1, sum(LENGTHS), D, generator=torch.Generator().manual_seed(3))


def make(graph: Graph, style: str) -> Mapping[str, ir.Value]:
    src = graph.input("x", ir.DataType.FLOAT, [1, "tokens", D])
    lengths = graph.input("lengths", ir.DataType.INT64, ["batch"])
    layer = functools.partial(layers.LinformerEncoderLayer, **SIZES, attention_style=style)
    return {"y": layers.LinformerEncoder(None, None, layer, 2)(graph, src, lengths=lengths)}


def compiled(style: str, precision: Any = "fp32", details: Mapping[str, Any] | None = None, **options: Any) -> Program:
    state = nn.as_state_dict(model(style))
    arguments = {"precision": precision, "quantization": dict(details or {}), "threads": 1, **options}
    return Program.compile(lambda graph: make(graph, style), state, **arguments)


def result(program: Program) -> np.ndarray:
    return program.run({"x": x().numpy(), "lengths": np.array(LENGTHS)})["y"][0]


def expected(style: str, plain: Program | None = None) -> np.ndarray:
    """What torch computes, with the weights of a program and its rounding of inputs where there is one."""
    other = model(style) if plain is None else with_weights_of(model(style), plain)
    with torch.no_grad():
        return other(x(), lengths=LENGTHS)[0].numpy()


def assert_near(found: np.ndarray, reference: np.ndarray, may_tip: bool) -> None:
    """Equal to 1e-4; an input halfway between two 8-bit floats may tip, and change its sequence."""
    errors = [np.abs(part).max() for part in np.split(found - reference, np.cumsum(LENGTHS)[:-1])]
    if not may_tip:
        assert max(errors) < 1e-4
    assert np.median(errors) < 1e-4 and np.linalg.norm(found - reference) < 0.05 * np.linalg.norm(reference)


@pytest.mark.parametrize("case", PRECISIONS)
def test_dequantized_weights(case: str) -> None:
    style = LINFORMER_STYLES[list(PRECISIONS).index(case) % 2]
    plain = compiled(style, *PRECISIONS[case], fuse=False)
    reference = expected(style, plain)
    assert 1e-4 < np.abs(reference - expected(style)).max() < 2, "it is another model, but not any"
    may_tip = bool(roundings(plain.model.graph))
    bodies = dataclasses.replace(plain, settings=SessionSettings(use_native=False, threads=1))
    assert_near(result(bodies), reference, may_tip)
    fast = result(compiled(style, *PRECISIONS[case]))
    if any(weight.stored.startswith("int") for weight in plain.report.weights):
        assert np.linalg.norm(fast - reference) < ROUNDED_INPUTS * np.linalg.norm(reference)
    else:
        assert_near(fast, reference, may_tip)


# Each style on one of the two, and on two stages.
PLANS: list[tuple[str, dict[str, Any]]] = [
    (LINFORMER_STYLES[0], {"model_type": "tp", "num_replicas": 2}),
    (LINFORMER_STYLES[1], {"model_type": "tp", "num_replicas": 4}),
    (LINFORMER_STYLES[2], {"model_type": "tp", "num_replicas": 4}),
    (LINFORMER_STYLES[0], {"layer_per_ipu": [1, 1]}),
    (LINFORMER_STYLES[2], {"layer_per_ipu": [0, 1, 1], "model_type": "tp", "num_replicas": 2}),
]


@pytest.mark.parametrize(("style", "plan"), PLANS, ids=str)
def test_replicas_and_stages(style: str, plan: dict[str, Any]) -> None:
    np.testing.assert_allclose(result(compiled(style, **plan)), expected(style), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("replicas", "precision"), [(2, "int8"), (4, "int4"), (2, "fp8"), (4, "bf16")])
def test_replicas_with_the_dequantized_weights_of_their_shares(replicas: int, precision: str) -> None:
    style = LINFORMER_STYLES[replicas // 4]
    plan = {"model_type": "tp", "num_replicas": replicas}
    plain = compiled(style, precision, fuse=False, **plan)
    reference = expected(style, plain)
    found = result(compiled(style, precision, **plan))
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    if precision == "bf16":
        np.testing.assert_allclose(found, reference, atol=1e-4, rtol=1e-5)
    else:
        # With fp8 a replica rounds its columns of an input by their own maximum.
        assert error < (0.1 if precision == "fp8" else ROUNDED_INPUTS)


def test_replicas_that_cannot_share_the_heads() -> None:
    with pytest.raises(ConfigError, match=r"num_replicas=3 does not divide 4 heads; valid: 1, 2, 4"):
        compiled(LINFORMER_STYLES[0], model_type="tp", num_replicas=3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_projections_take_16_bits(precision: str) -> None:
    """They are cut to a row's length before they multiply, so they cannot be packed, but they can be halved."""
    for style in LINFORMER_STYLES:
        stored = {weight.name: weight for weight in compiled(style, precision).report.weights}
        own = [weight for name, weight in stored.items() if "proj_e" in name or "proj_f" in name or name[:4] == "proj"]
        assert own and all(weight.stored == precision for weight in own)
        assert all(weight.nbytes == 2 * n * k for weight in own)


def test_projections_cannot_be_packed(caplog: pytest.LogCaptureFixture) -> None:
    program = compiled(LINFORMER_STYLES[1], {"*proj_e*": "int8"})
    assert {weight.stored for weight in program.report.weights} == {"fp32"}
    assert (
        "layers.0.self_attn.proj_e.weight stays as it is, for it is read by Slice; *proj_e* asks for int8"
        in caplog.text
    )


def make_padded(graph: Graph, style: str) -> Mapping[str, ir.Value]:
    src = graph.input("x", ir.DataType.FLOAT, ["batch", "tokens", D])
    padding = graph.input("padding", ir.DataType.BOOL, ["batch", "tokens"])
    layer = functools.partial(layers.LinformerEncoderLayer, **SIZES, attention_style=style)
    return {"y": layers.LinformerEncoder(None, None, layer, 2)(graph, src, padding)}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("add", [make, make_padded])
def test_validation(add: Any, precision: str) -> None:
    """It knows the bytes of the weights, and the shapes of all values but E and F, which are cut to a row's length."""
    style = LINFORMER_STYLES[0]
    build = Build(state_dict=nn.as_state_dict(model(style)), precision=precision)
    sizes = {"tokens": 40, "batch": 4}
    found = validate(build_program(lambda graph: add(graph, style), build).model, build.recipe, sizes)
    stored = compiled(style, precision, fuse=False).model.graph.initializers.items()
    assert found.weight_bytes == sum(value.const_value.nbytes for name, value in stored if "const_" not in name)
    assert found.unknown_shapes <= 8
    assert add is make or found.activation_bytes > 4 * 4 * N * 40 * k  # attention's weights of all rows


def test_the_report_of_an_ipu_says_what_it_does_not_count() -> None:
    build, device = Build(state_dict=nn.as_state_dict(model(LINFORMER_STYLES[0]))), load_device("gc200")
    sizes = {"tokens": 40, "batch": 4}
    reports = [
        "\n".join(program_report(lambda graph, add=add: add(graph, LINFORMER_STYLES[0]), build, device, sizes))
        for add in (make, make_padded)
    ]
    assert "Not counted: what 2 Loop nodes do" in reports[0] and "Not counted" not in reports[1]


@pytest.mark.parametrize("plan", [{"precision": "int8"}, {"model_type": "tp", "num_replicas": 2}], ids=str)
def test_a_packed_graph_is_saved_and_opened(plan: dict[str, Any], tmp_path: Path) -> None:
    program = compiled(LINFORMER_STYLES[2], **plan)
    opened = Program.load(program.save(tmp_path / "model"), threads=1)
    np.testing.assert_array_equal(result(opened), result(program))
    assert opened.report == program.report
