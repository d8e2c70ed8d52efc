# SPDX-License-Identifier: Apache-2.0
"""The quantize pass and its recipe: which rule a weight gets, patterns that match nothing, details."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import ops, passes
from poptransformer.errors import ConfigError
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.recipe import Recipe
from tests.unit.passes.small_graph import (
    TABLE,
    V,
    built,
    quantized,
    run,
)


def test_the_first_pattern_that_matches_counts() -> None:
    recipe = {"lm_head*": "int8", "*.0.mlp.*": "fp16", "*.mlp.down*": "int4", "*": "bf16"}
    model, report = quantized(recipe)
    assert {weight.name: weight.stored for weight in report.weights} == {
        "model.embed.weight": "int8 block 32",  # a tied table goes by the head's name too
        "model.layers.0.mlp.up.weight": "fp16",
        "model.layers.0.mlp.down.weight": "fp16",
        "model.layers.1.mlp.up.weight": "bf16",
        "model.layers.1.mlp.down.weight": "int4 block 32 offsets",
    }
    assert run(model).shape == (2, 3, V)


def test_what_no_pattern_matches_keeps_the_checkpoints_type() -> None:
    model = built(table=TABLE.astype(np.float16))
    report = passes.quantize(model, Recipe.of({"*.up.*": "int8"}))
    assert [weight.stored for weight in report.weights] == ["fp16", "int8 block 32", "fp32", "int8 block 32", "fp32"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"lm_haed*": "int8", "*": "int4"}, r"No weight matches the pattern lm_haed\* .*Nearest: lm_head"),
        ({"*.mpl.*": "int8"}, r"No weight matches the pattern \*\.mpl\.\* of the recipe\. Nearest: mlp"),
        ({"zzz": "int8"}, "No weight matches the pattern zzz .*Weights are called, for example, model.embed.weight, "),
        ({"model*": "int8", "*.mlp.*": "int4"}, r"Earlier patterns of the recipe take every weight that \*\.mlp\.\*"),
        ({"*": "int8", "lm_head*": "int4"}, r"Put lm_head\* first, or leave it out"),
    ],
    ids=str,
)
def test_patterns_that_change_nothing_are_refused(recipe: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(recipe)


def test_what_is_left_may_be_nothing() -> None:
    quantized({"model*": "int8", "*": "int4"})


@pytest.mark.parametrize(("pattern", "level"), [("*", logging.INFO), ("table", logging.WARNING)])
def test_a_weight_with_other_readers_stays(pattern: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    graph = Graph()
    table = graph.initializer(TABLE, "table")
    ids = graph.input("ids", ir.DataType.INT64, [2])
    graph.output(ops.add(graph, ops.gather(graph, table, ids), ops.reduce_max(graph, table, [0])), "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    with caplog.at_level(logging.INFO, "poptransformer"):
        report = passes.quantize(model, Recipe.of({pattern: "int8"}))
    assert [weight.stored for weight in report.weights] == ["fp32"]
    (record,) = [record for record in caplog.records if "stays" in record.message]
    assert record.levelno == level
    assert record.message == f"table stays as it is, for it is read by ReduceMax; {pattern} asks for int8"


DETAILS = [
    ({"*": "int4"}, {}, "int4 block 32 offsets", 4),
    ({"*": "int4"}, {"int4_block": 64, "int4_symmetric": True}, "int4 block 64", 4),
    ({"*": "int4"}, {"int4_block": 128}, "int4 block 128 offsets", 4),
    ("int8", {"int8_block": "channel"}, "int8 channel", 8),
    ("int8", {"int8_block": 128}, "int8 block 128", 8),
    ({"*": "fp8_weight"}, {}, "e4m3fn channel", 8),
    ({"*": "fp8_weight"}, {"fp8_format": "e5m2", "fp8_scale": "tensor"}, "e5m2 tensor", 8),
    ({"*": "fp8_weight"}, {"fp8_convention": "ipu"}, "e4m3fnuz channel", 8),
    ({"*": "fp8"}, {"fp8_convention": "IPU", "fp8_format": "E5M2"}, "e5m2fnuz channel", 8),
]


@pytest.mark.parametrize(("precision", "details", "stored", "bits"), DETAILS, ids=str)
def test_details(precision: Any, details: dict[str, Any], stored: str, bits: int) -> None:
    model, report = quantized(precision, **details)
    assert {weight.stored for weight in report.weights} == {stored}
    scales = [v.const_value.numpy() for name, v in model.graph.initializers.items() if name.endswith(".scales")]
    if "tensor" in stored:
        assert all(len(set(array[:2].ravel())) == 1 for array in scales)
    if "ipu" in str(details).lower():
        mantissas = np.concatenate([np.frexp(array[array > 0])[0].ravel() for array in scales])
        assert set(mantissas) == {0.5}
    rounding = {node.attributes["scaling"].as_string() for node in model.graph if node.op_type == "RoundToFloat8"}
    assert rounding == ({"power_of_two"} if precision == {"*": "fp8"} else set())


@pytest.mark.parametrize(
    ("precision", "details", "head", "rest"),
    [
        ("int4", {}, "int8 block 32", "int4 block 32 offsets"),
        ("fp8_weight", {}, "int8 block 32", "e4m3fn channel"),
        ("fp8", {"fp8_format": "e5m2"}, "int8 block 32", "e5m2 channel"),
        ("fp8", {"fp8_convention": "ipu"}, "fp16", "e4m3fnuz channel"),
        ("int4", {"fp8_convention": "ipu"}, "int8 block 32", "int4 block 32 offsets"),
    ],
    ids=str,
)
def test_a_name_alone_spares_the_head(precision: str, details: dict[str, str], head: str, rest: str) -> None:
    model, report = quantized(precision, **details)
    stored = {weight.name: weight.stored for weight in report.weights}
    assert stored.pop("model.embed.weight") == head
    assert set(stored.values()) == {rest}
    assert run(model).shape == (2, 3, V)


def test_details_of_one_rule() -> None:
    recipe = {"*.up.*": {"precision": "int4", "int4_block": 128}, "*": "int4"}
    _, report = quantized(recipe, int4_symmetric=False)
    assert {weight.stored for weight in report.weights} == {"int4 block 128 offsets", "int4 block 32 offsets"}
