# SPDX-License-Identifier: Apache-2.0
"""Hydra's errors in our words."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize, initialize_config_dir
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


def test_no_folder_or_an_empty_one(tmp_path: Path) -> None:
    assert message(tmp_path) == f"There is no configuration sharding, nor any other, in {tmp_path}. Set --config-dir."
    base_config.register()
    with initialize(None, version_base="1.3"), pytest.raises(HydraException) as error:
        compose("sharding")
    assert describe(error.value) == "There is no configuration sharding: no folder was given. Set --config-dir=FOLDER."


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


# -- files ------------------------------------------------------------------------------------------------------------

FILES = {
    "unclosed": ("model:\n  topk: [1, 2\n  seed: 3\n", r"line 3, column 7: expected ',' or '\]', but got ':' while "),
    "nested": ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
    "tabs": ("model:\n\ttopk: 1\n", r"line 2, column 1: found character '\\t' that cannot start any token"),
    "twice": ("model:\n  topk: 1\n  topk: 2\n", "line 3, column 3: found duplicate key topk"),
    "code": (
        'x: !!python/object/apply:os.system ["exit"]\n',
        "line 1, column 4: could not determine a constructor for",
    ),
    "control": ("x: \x07\n", "unacceptable character #x0007: special characters are not allowed"),
    "latin1": (b"x: caf\xe9\n", "must be YAML in UTF-8, found byte 0xe9 at 6"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_yaml(conf: Path, name: str) -> None:
    content, problem = FILES[name]
    path = conf / f"{name}.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    base_config.register()
    with initialize_config_dir(str(conf), version_base="1.3"), pytest.raises(Exception) as error:
        compose(name)
    text = describe(error.value)
    assert text is not None
    assert re.search(problem, text), text
    assert "\n" not in text
    assert str(path) in text or name == "control"  # YAML's reader names no file


def test_text_that_no_configuration_holds_is_no_fault_of_it() -> None:
    assert describe(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disks(number: int) -> None:
    problem = os.strerror(number)
    text = describe(OSError(number, problem))
    assert text == f"Writing failed: {problem}. Free some disk space, or write to another place."
    text = describe(OSError(number, problem, "/data/x"))
    assert text == f"Writing /data/x failed: {problem}. Free some disk space, or write to another place."
    assert describe(OSError(errno.EACCES, "Permission denied")) is None
