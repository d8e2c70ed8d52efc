# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a session: composition, validation, and what the classes are given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from poptransformer.build import current_build
from poptransformer.errors import ConfigError
from poptransformer.utils import base_config, prepare_model_session
from poptransformer.utils.prepare import check_config

assert base_config.NAME  # importing it registers the base configuration


class FakeModel:
    """Notes what it is given."""

    def __init__(self, extra: Any = None, stop: Any = (), topk: int = 1, **kwargs: Any) -> None:
        self.values = {"extra": extra, "stop": stop, "topk": topk, **kwargs}
        self.build = current_build()
        self.is_built = False

    def build_graph(self) -> None:
        self.is_built = True


class RefusingModel:
    def __init__(self, width: int = 1) -> None:
        raise ConfigError(f"width {width} is odd. Set model.width to an even number.")


class FakeSession:
    def __init__(self, log_severity: int = 3, threads: int | None = None) -> None:
        self.log_severity, self.threads, self.model = log_severity, threads, None

    def compile(self, model: Any) -> None:
        model.build_graph()
        self.model = model


MODEL = {"_target_": f"{__name__}.FakeModel"}
SESSION = {"_target_": f"{__name__}.FakeSession"}


def config(**changes: Any) -> DictConfig:
    return OmegaConf.create({"model": MODEL, "session": SESSION, **changes})


def test_a_plain_configuration_has_the_defaults() -> None:
    """What the README's users write, without our base configuration."""
    session, model = prepare_model_session(config(global_args={"batch_size": 3, "precision": "fp32"}))
    assert session.model is model
    assert (model.build.batch_size, model.build.precision, model.build.model_type) == (3, "fp32", "shard")


def test_a_dictionary_will_do() -> None:
    prepare_model_session({"model": MODEL, "session": SESSION})


def test_constructors_get_plain_lists() -> None:
    _, model = prepare_model_session(config(model={**MODEL, "extra": [1, {"a": [2]}]}))
    assert type(model.values["extra"]) is list
    assert type(model.values["extra"][1]) is dict


@pytest.mark.parametrize(
    ("values", "topk"),
    [
        ({"topk": None}, 1),
        ({"topk": None, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0}, 1),
        ({"topk": None, "temperature": 0.7}, 0),
        ({"topk": None, "top_p": 0.9}, 0),
        ({"topk": None, "min_p": 0.1}, 0),
        ({"topk": 1, "temperature": 0.7}, 1),
        ({"topk": 5}, 5),
    ],
)
def test_topk_null_draws_where_something_asks_for_draws(values: dict[str, Any], topk: int) -> None:
    _, model = prepare_model_session(config(model={**MODEL, **values}))
    assert model.values["topk"] == topk


def test_one_stop_text_is_a_list_of_one() -> None:
    _, model = prepare_model_session(config(model={**MODEL, "stop": "END"}))
    assert model.values["stop"] == ["END"]


@pytest.mark.parametrize(("level", "severity"), [("off", 4), (False, 4), ("INFO", 1), ("warn", 2), ("trace", 0)])
def test_popart_log_level_reaches_the_session(level: Any, severity: int) -> None:
    session, _ = prepare_model_session(config(popart_log_level=level))
    assert session.log_severity == severity


@pytest.mark.parametrize(("level", "expected"), [("info", 20), ("DEBUG", 10), ("off", 51)])
def test_log_level(level: str, expected: int) -> None:
    prepare_model_session(config(log_level=level))
    assert logging.getLogger("poptransformer").level == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, "Unknown key modle. Nearest: model."),
        ({"global_args": {"batchsize": 1}}, "Unknown key global_args.batchsize. Nearest: batch_size"),
        ({"session": {**SESSION, "thread": 1}}, "Unknown key session.thread. Nearest: threads."),
        ({"session": {**SESSION, "threads": 0}}, "session.threads must be an integer of at least 1"),
        ({"session": {"threads": 1}}, "session._target_ must name a class"),
        (
            {"model": {**MODEL, "topk": "five"}},
            "model.topk must be an integer of at least 0, or null, found 'five'",
        ),
        ({"model": 3}, "model must be a group of keys, found 3 (int)"),
        ({"inputs": ["a"]}, "inputs must be a group of keys, found ['a'] (list)"),
        ({"global_args": {"model_type": "shrad"}}, "Invalid model_type shrad, options: ['shard', 'tp']"),
        ({"global_args": {"precision": "fp17"}}, "Invalid precision fp17, options: ["),
        ({"model": {**MODEL, "extra": "???"}}, "model.extra"),
        ({"model": {**MODEL, "extra": "${nowhere}"}}, "model.extra"),
        (
            {"model": {"_target_": f"{__name__}.RefusingModel"}},
            "width 1 is odd. Set model.width to an even number.",
        ),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare_model_session(config(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_private_keys_are_the_users() -> None:
    assert check_config(config(_width=3, inputs={"anything": "${_width}"})).inputs == {"anything": 3}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """An application of somebody else, over our base configuration."""
    folder = tmp_path / "app" / "conf"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text(
        yaml.safe_dump({**MODEL, "extra": 1, "hf_model_name": "${example_dir:weights}"})
    )
    main = {"defaults": ["poptransformer", {"model": "mine"}, "_self_"]}
    (folder / "sharding.yaml").write_text(yaml.safe_dump(main))
    (folder / "misspelt.yaml").write_text(
        yaml.safe_dump({"defaults": ["sharding", "_self_"], "global_args": {"precison": "fp32"}})
    )
    return folder


def test_every_key_can_be_overridden(conf: Path) -> None:
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose("sharding", ["model.temperature=0.5", "session.threads=2", "global_args.batch_size=4"])
        checked = check_config(composed)
    assert (checked.model["temperature"], checked.model["topk"], checked.model["extra"]) == (0.5, 0, 1)
    assert checked.session["threads"] == 2
    assert checked.global_args.batch_size == 4


def test_example_dir_is_beside_the_conf_folder(conf: Path) -> None:
    with initialize_config_dir(str(conf), version_base="1.3"):
        assert check_config(compose("sharding")).model["hf_model_name"] == str(conf.parent / "weights")


def test_example_dir_outside_of_an_application() -> None:
    with pytest.raises(ConfigError, match="but none is running. Write the path itself"):
        check_config(config(model={**MODEL, "hf_model_name": "${example_dir:tiny}"}))


def test_a_single_run_writes_no_folder(conf: Path) -> None:
    with initialize_config_dir(str(conf), version_base="1.3"):
        hydra = compose("sharding", return_hydra_config=True).hydra
    assert (hydra.run.dir, hydra.output_subdir) == (".", None)
    assert list(hydra.job_logging.handlers) == ["stderr"]


def test_a_key_misspelt_in_yaml(conf: Path) -> None:
    with (
        initialize_config_dir(str(conf), version_base="1.3"),
        pytest.raises(ConfigError, match=r"^Unknown key global_args\.precison\. Nearest: precision"),
    ):
        prepare_model_session(compose("misspelt"))
