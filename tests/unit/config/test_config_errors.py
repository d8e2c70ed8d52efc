# SPDX-License-Identifier: Apache-2.0
"""Hydra's errors in our words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from poptransformer.errors import ConfigError
from poptransformer.utils import base_config
from poptransformer.utils.config_errors import describe


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name in ("gpt2", "gpt2-xl", "tiny"):
        model = {"_target_": "poptransformer.models.GPT2DecModel", "hf_model_name": "${example_dir:tiny}"}
        (tmp_path / "model" / f"{name}.yaml").write_text(yaml.safe_dump(model))
    two_stages = {"_target_": "poptransformer.models.base_model.HFDec2stageBaseModel"}
    (tmp_path / "model" / "two_stages.yaml").write_text(yaml.safe_dump(two_stages))
    (tmp_path / "sharding.yaml").write_text("defaults: [poptransformer, model: tiny, _self_]\ninputs: {chat: false}\n")
    (tmp_path / "bare.yaml").write_text("defaults: [poptransformer, model: tiny]\n")
    return tmp_path


def message(conf: Path, *overrides: str, name: str = "sharding") -> str:
    base_config.register()
    with initialize_config_dir(str(conf), version_base="1.3"), pytest.raises(HydraException) as error:
        compose(name, list(overrides))
    text = describe(error.value)
    assert text is not None
    return text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.topkk=5", "Unknown key model.topkk. Nearest: topk"),
        ("model={topkk: 5}", "Unknown key model.topkk. Nearest: topk"),
        ("model.topk.x=5", "Unknown key model.topk.x. "),
        ("model.input_length=5", "Unknown key model.input_length. Nearest: max_length"),
        ("session.thread=5", "Unknown key session.thread. Nearest: threads"),
        ("global_args.batchsize=5", "Unknown key global_args.batchsize. Nearest: batch_size"),
        ("globalargs.batch_size=2", "Unknown key globalargs. Nearest: global_args"),
        ("modle=gpt2-xl", "Unknown key modle. Nearest: model"),
        ("inputs.chatt=true", "Unknown key inputs.chatt. Nearest: chat"),
        ("model=gpt2-xxl", "model has no option gpt2-xxl. Nearest: gpt2-xl, gpt2. Options: gpt2, gpt2-xl, tiny, two"),
        ("model=bloom", "model has no option bloom. Options: gpt2, gpt2-xl, tiny, two_stages."),
        ("model.topk=1,2", "Ambiguous value for argument 'model.topk=1,2'\n1. To use it as a list"),
        ("~model.topkk", "Could not delete from config. 'model.topkk' does not exist."),
        ("inputs.a=[What's it?]", "Hydra cannot read inputs.a=[What's it?]\n"),
    ],
)
def test_command_line(conf: Path, override: str, expected: str) -> None:
    assert message(conf, override).startswith(expected)


def test_a_key_that_the_class_takes_is_no_misspelling(conf: Path) -> None:
    assert message(conf, "model=two_stages", "model.input_length=5") == (
        "model.input_length is a key of poptransformer.models.base_model.HFDec2stageBaseModel, "
        "but not in the configuration: write +model.input_length=VALUE."
    )


def test_inputs_of_ones_own(conf: Path) -> None:
    assert "Write +inputs.image=VALUE" in message(conf, "inputs.image=x", name="bare")


def test_a_missing_file_names_the_folder_and_what_is_there(conf: Path) -> None:
    assert message(conf, name="shading") == (
        f"There is no configuration shading in {conf}. Nearest: sharding. Options: bare, sharding."
    )


def test_quoting_is_explained(conf: Path) -> None:
    assert "A text needs quotes for the shell and for Hydra: " in message(conf, 'inputs.a="x')


def test_our_own_errors_are_sentences_already() -> None:
    assert describe(ConfigError("Set it.")) == "Set it."


def test_other_errors_are_not_the_users() -> None:
    assert describe(ZeroDivisionError("x")) is None
