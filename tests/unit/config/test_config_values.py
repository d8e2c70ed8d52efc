# SPDX-License-Identifier: Apache-2.0
"""Keys, defaults and the values each key accepts."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from poptransformer.config import (
    GlobalArgs,
    InputsConfig,
    ModelConfig,
    QuantizationConfig,
    Section,
    SessionConfig,
    TopLevel,
    base_config,
)
from poptransformer.errors import ConfigError

SECTIONS = [TopLevel, GlobalArgs, QuantizationConfig, SessionConfig, ModelConfig, InputsConfig]


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_accepted(section: type[Section]) -> None:
    section.from_mapping(section.defaults())
    section()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented(section: type[Section]) -> None:
    documented = inspect.getdoc(section) or ""
    assert [key for key in section.names() if f"{key}:" not in documented] == []


@pytest.mark.parametrize("section", SECTIONS)
def test_examples_in_messages_are_accepted(section: type[Section]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for field in dataclasses.fields(section):
        rule = field.metadata["rule"]
        example = rule.example.strip("'")  # the shell's quotes
        value = OverridesParser.create().parse_override(f"{field.name}={example}").value()
        rule.check(field.name, value)


def test_sections_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GlobalArgs().batch_size = 2  # type: ignore[misc]


def test_base_config_is_a_copy() -> None:
    base_config()["model"]["stop"].append("x")
    assert base_config()["model"]["stop"] == []


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            GlobalArgs,
            "batch_size",
            0,
            "global_args.batch_size must be an integer of at least 1, found 0 (int)",
        ),
        (GlobalArgs, "batch_size", True, "must be an integer of at least 1, found True (bool)"),
        (GlobalArgs, "num_replicas", 1.0, "must be an integer of at least 1, found 1.0 (float)"),
        (
            GlobalArgs,
            "enable_pipeline",
            1,
            "global_args.enable_pipeline must be true or false, found 1 (int)",
        ),
        (SessionConfig, "threads", -1, "session.threads must be an integer of at least 1, or null, found -1"),
        (SessionConfig, "profile_name", "", "session.profile_name must be a text, or null"),
        (
            ModelConfig,
            "temperature",
            "hot",
            "model.temperature must be a number of at least 0, found 'hot' (str)",
        ),
        (ModelConfig, "temperature", float("nan"), "must be a number of at least 0, found nan"),
        (ModelConfig, "temperature", float("inf"), "must be a number of at least 0, found inf"),
        (ModelConfig, "top_p", 0, "model.top_p must be a number above 0 and at most 1, found 0"),
        (ModelConfig, "min_p", 1.5, "model.min_p must be a number from 0 to 1, found 1.5"),
        (ModelConfig, "repetition_penalty", 0, "must be a number above 0, found 0"),
        (ModelConfig, "seed", 2**63, "model.seed must be an integer from 0 to 9223372036854775807, or null"),
        (ModelConfig, "topk", -1, "model.topk must be an integer of at least 0, or null, found -1"),
        (
            ModelConfig,
            "layer_per_ipu",
            [1, -1],
            "model.layer_per_ipu must be a list of integers of at least 0, or",
        ),
        (ModelConfig, "layer_per_ipu", "12", "model.layer_per_ipu must be a list of integers"),
        (ModelConfig, "early_stop", None, "model.early_stop must be true or false, found null"),
        (
            ModelConfig,
            "outline_blocks",
            "all",
            "Invalid outline_blocks all, options: ['single_block', 'multi_block']",
        ),
        (
            ModelConfig,
            "hf_model_class_name",
            "auto",
            "Invalid hf_model_class_name auto, options: ['auto_model', ",
        ),
        (
            InputsConfig,
            "input_string_list",
            "Hi",
            "inputs.input_string_list must be a list of texts, found 'Hi'",
        ),
        (InputsConfig, "input_string_list", ["Hi", 3], "inputs.input_string_list must be a list of texts"),
        (InputsConfig, "input_string", ["Hi", 3], "inputs.input_string must be a text or a list of texts, or null"),
        (TopLevel, "log_level", "loud", "Invalid log_level loud, options: ['debug', 'info', 'warning', "),
    ],
)
def test_other_values_are_refused(section: type[Section], key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        section.check({key: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (ModelConfig, "temperature", 1),
        (ModelConfig, "layer_per_ipu", (0, 2)),
        (ModelConfig, "layer_per_ipu", None),
        (ModelConfig, "outline_blocks", None),
        (ModelConfig, "stop", "\n"),
        (InputsConfig, "input_string", "Hi"),
        (InputsConfig, "input_string", ["Hi", "Bye"]),
        (ModelConfig, "stop", ["\n", "END"]),
        (ModelConfig, "seed", 2**63 - 1),
        (TopLevel, "log_level", "INFO"),
        (TopLevel, "popart_log_level", "off"),
        (TopLevel, "popart_log_level", False),  # how YAML reads an unquoted off
        (TopLevel, "popart_log_level", "WARN"),
    ],
)
def test_values_are_accepted(section: type[Section], key: str, value: Any) -> None:
    section.check({key: value})


def test_messages_end_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"For example: global_args\.batch_size=1$"):
        GlobalArgs(batch_size=0)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^Unknown key global_args\.batchsize\. Nearest: batch_size"):
        GlobalArgs.from_mapping({"batchsize": 2})


def test_constructors_have_the_same_keys_and_defaults() -> None:
    """The base configuration and the classes must agree, or a default would depend on who is asked."""
    from poptransformer.models.base_model import HFModel
    from poptransformer.sessions import Session

    for section, target in ((ModelConfig, HFModel), (SessionConfig, Session)):
        parameters = inspect.signature(target).parameters
        expected = {name: parameters[name].default for name in section.names()}
        expected.update({name: list(value) for name, value in expected.items() if isinstance(value, tuple)})
        if section is ModelConfig:
            expected["topk"] = None  # resolved before the constructor sees it
        assert section.defaults() == expected
