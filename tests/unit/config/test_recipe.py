# SPDX-License-Identifier: Apache-2.0
"""Recipes and the details of quantization: what is accepted, what the errors say, what a recipe is known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poptransformer.build import Build
from poptransformer.config import GlobalArgs
from poptransformer.errors import ConfigError
from poptransformer.recipe import PRECISIONS, QuantizationConfig, Recipe


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_name_is_a_recipe_of_one_rule(precision: str) -> None:
    recipe = Recipe.of(precision)
    assert (recipe.text, len(recipe.rules)) == (precision, 1)
    pattern, choice = recipe.match(["any.name"]) or ("", None)
    assert (pattern, choice and choice.precision) == ("*", precision)
    assert recipe.is_float == (precision in ("fp32", "fp16", "bf16"))


def test_the_first_rule_counts_and_any_name_will_do() -> None:
    recipe = Recipe.of({"lm_head*": "int8", "*.[qk]_proj.*": "fp16", "model.layers.?.*": "int4"})
    found = {
        name: rule[1].precision if (rule := recipe.match([name, "other"])) else None
        for name in ("lm_head.weight", "model.layers.0.q_proj.weight", "model.layers.3.up.weight", "model.layers.10.up")
    }
    assert list(found.values()) == ["int8", "fp16", "int4", None]
    rule = recipe.match(["model.embed_tokens.weight", "lm_head.weight"])
    assert rule is not None
    assert rule[0] == "lm_head*"
    assert recipe.match(["LM_HEAD.weight"]) is None


def test_a_rule_may_have_details_of_its_own() -> None:
    recipe = Recipe.of({"a": {"precision": "int4", "int4_block": 64}, "b": "int4"}, {"int4_symmetric": False})
    details = {pattern: (choice.details.int4_block, choice.details.int4_symmetric) for pattern, choice in recipe.rules}
    assert details == {"a": (64, False), "b": (32, False)}
    assert recipe.text == '{"a": {"precision": "int4", "int4_block": 64}, "b": "int4"}'


@pytest.mark.parametrize(
    ("precision", "quantization", "message"),
    [
        ("int5", {}, r"Invalid precision int5, options: \['fp32', 'fp16', .*Nearest: "),
        ({"*.mlp.*": "in4"}, {}, r"Invalid precision in4 for \*\.mlp\.\*, options: .*Nearest: int4"),
        ({}, {}, r"global_args\.precision must be a precision or a recipe .*, found \{\}\. For example: "),
        (None, {}, r"global_args\.precision must be a precision or a recipe .*, found None"),
        (["int4"], {}, "must be a precision or a recipe"),
        ({"*": 4}, {}, r"Invalid precision 4 for \*"),
        ({"*": {"int4_block": 64}}, {}, r"global_args\.precision\.\* has no precision\. Add precision: int4"),
        (
            {"*": {"precision": "int4", "int4_blok": 64}},
            {},
            r"Unknown key global_args\.precision\.\*\.int4_blok\. Nearest: int4_block",
        ),
        ({"*": {"precision": "int4", "calibration_file": "x"}}, {}, r"Unknown key .*\.calibration_file"),
        ({"*": {"precision": "int4", "int4_block": 48}}, {}, r"Invalid int4_block 48, options: \['32', '64', '128'\]"),
        ("int4", {"int4_block": "32"}, r"Invalid int4_block 32"),
        ("int4", {"int4_block": True}, r"Invalid int4_block True"),
        ("int8", {"int8_block": "row"}, r"Invalid int8_block row, options: .*'channel'"),
        ("int4", {"int4_symetric": True}, r"Unknown key global_args\.quantization\.int4_symetric\. Nearest: int4_symm"),
        ("int4", {"int4_symmetric": 1}, r"global_args\.quantization\.int4_symmetric must be true or false, found 1"),
        ("fp8", {"fp8_format": "e4m4"}, r"Invalid fp8_format e4m4, options: \['e4m3', 'e5m2'\]\. Nearest: e4m3"),
        ("fp8", {"fp8_convention": "amd"}, r"Invalid fp8_convention amd, options: \['onnx', 'ipu'\]"),
        ("fp8", {"fp8_activations": "fixed"}, r"Invalid fp8_activations fixed, options: \['dynamic', 'static'\]"),
        ("int4", {"calibration_method": "awq"}, r"Invalid calibration_method awq, options: \['none', 'gptq'\]"),
        ("int4", {"calibration_tokens": 3}, r"calibration_tokens must be an integer of at least 32, found 3"),
        ("int4", {"calibration_file": ""}, r"calibration_file must be a text, or null"),
    ],
    ids=str,
)
def test_wrong_values(precision: Any, quantization: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.of(precision, quantization)
    with pytest.raises(ConfigError, match=message):
        GlobalArgs.from_mapping({"precision": precision, "quantization": quantization})
    with pytest.raises(ConfigError, match=message):
        Build(precision=precision, quantization=quantization)


def test_the_group_itself_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"global_args\.quantization must be a group of keys, found 'gptq' \(str\)"):
        GlobalArgs.from_mapping({"quantization": "gptq"})
    assert GlobalArgs.from_mapping({"quantization": {"int4_block": 64}}).quantization.int4_block == 64
    assert GlobalArgs.defaults()["quantization"] == QuantizationConfig.defaults()


def test_capitals_mean_the_same() -> None:
    details = QuantizationConfig(fp8_format="E5M2", fp8_convention="IPU", calibration_method="None")
    assert (details.float8, details.calibration_method) == ("e5m2fnuz", "none")
    assert QuantizationConfig(fp8_format="E5M2").float8 == "e5m2"
    assert QuantizationConfig().float8 == "e4m3fn"


CALIBRATED = [("int4", {"calibration_method": "gptq"}), ("fp8", {"fp8_activations": "static"})]


@pytest.mark.parametrize(("precision", "details"), CALIBRATED)
def test_calibration_needs_a_text(precision: str, details: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"calibration_file must be a text file, .* found null"):
        Build(precision=precision, quantization=details)
    with pytest.raises(ConfigError, match=r"found .*missing\.txt, which is no file"):
        Build(precision=precision, quantization={**details, "calibration_file": str(tmp_path / "missing.txt")})
    (tmp_path / "text.txt").write_text("text")
    build = Build(precision=precision, quantization={**details, "calibration_file": str(tmp_path / "text.txt")})
    assert build.recipe.is_calibrated
    other = "fp16"  # what needs no calibration needs no text
    assert not Build(precision=other, quantization=details).recipe.is_calibrated


def test_a_recipe_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    calibrated = {"calibration_method": "gptq", "calibration_file": str(text)}
    known = [
        Recipe.of(precision, details).fingerprint
        for precision, details in (
            ("int4", {}),
            ("int8", {}),
            ("int4", {"int4_block": 64}),
            ({"*": "int4"}, {}),
            ({"*": {"precision": "int4", "int4_block": 64}}, {}),
            ({"a": "int4", "b": "int8"}, {}),
            ({"b": "int8", "a": "int4"}, {}),
            ("int4", calibrated),
        )
    ]
    text.write_text("two")
    known.append(Recipe.of("int4", calibrated).fingerprint)
    assert all(known.count(fingerprint) == 1 for fingerprint in known)
    assert Recipe.of("int4", calibrated).fingerprint == known[-1]
