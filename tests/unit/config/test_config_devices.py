# SPDX-License-Identifier: Apache-2.0
"""`device=...`: Hydra finds the files that come with the package, behind the application's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from poptransformer.ipu.device import device_content, device_names
from poptransformer.utils import base_config


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    base_config.register()
    (tmp_path / "sharding.yaml").write_text("defaults: [poptransformer, _self_]\n")
    return tmp_path


@pytest.mark.parametrize("name", device_names())
def test_a_device_of_the_package(conf: Path, name: str) -> None:
    with initialize_config_dir(str(conf), version_base="1.3"):
        assert "device" not in compose("sharding")
        assert OmegaConf.to_container(compose("sharding", [f"device={name}"]).device) == device_content(name)


def test_the_applications_own_goes_first(conf: Path) -> None:
    (conf / "device").mkdir()
    (conf / "device" / "c600.yaml").write_text(yaml.safe_dump({"name": "mine"}))
    with initialize_config_dir(str(conf), version_base="1.3"):
        assert compose("sharding", ["device=c600"]).device == {"name": "mine"}
        assert compose("sharding", ["device=bow"]).device.name == "bow"
