# SPDX-License-Identifier: Apache-2.0
"""Devices are data: every constant has a value, a unit and a source."""

from __future__ import annotations

import copy

import pytest

from poptransformer.errors import ConfigError
from poptransformer.ipu.device import Device, device_content, device_names, load_device


@pytest.mark.parametrize("name", ["gc2", "gc200", "bow", "c600"])
def test_every_constant_has_a_source(name: str) -> None:
    device = load_device(name)
    assert device.name == name and device.description
    for constant in device.constants().values():
        assert constant["source"]
        assert constant["value"] >= 0


@pytest.mark.parametrize(
    ("name", "math", "teraflops"),
    [
        ("gc2", "fp32", 31.1),
        ("gc2", "fp16", 124.5),
        ("gc200", "fp32", 62.4),
        ("gc200", "fp16", 250),
        ("bow", "fp32", 87),
        ("bow", "fp16", 349),
        ("c600", "fp32", 70),
        ("c600", "fp16", 280),
        ("c600", "fp8", 560),
    ],
)
def test_peaks_are_the_published_ones(name: str, math: str, teraflops: float) -> None:
    assert load_device(name).peak(math) == pytest.approx(teraflops * 1e12, rel=0.015)


def test_memory_is_the_published_one() -> None:
    assert load_device("c600").ipu_bytes == 1472 * 638_976
    assert load_device("gc200").ipu_bytes / 2**20 == 897
    assert load_device("gc2").ipu_bytes == 1216 * 256 * 1024
    assert [name for name in device_names() if load_device(name).has_fp8] == ["c600"]


def test_sync_of_several_ipus() -> None:
    """poplibs: ceil(15 ns * f * (1 + N/4) * 2)."""
    assert load_device("c600").ipu_sync_cycles(4) == 90
    assert load_device("c600").ipu_sync_cycles(2) == 68


def changed(**changes: object) -> dict[str, object]:
    content = copy.deepcopy(device_content("c600"))
    content["constants"].update(changes)
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": {"value": 1, "source": "x"}}, "unknown constant tile. Nearest: tiles"),
        ({"tiles": {"value": 0, "source": "x"}}, "tiles must be a number above 0, found 0"),
        ({"tiles": {"value": "many", "source": "x"}}, "tiles must be a number above 0, found 'many'"),
        ({"tiles": {"value": 8}}, "tiles must have a value and a source"),
        ({"clock_hz": {"value": float("nan"), "source": "x"}}, "clock_hz must be a number above 0, found nan"),
    ],
)
def test_wrong_files_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match="device mine: ") as error:
        Device.from_mapping(changed(**changes), "device mine")
    assert message in str(error.value)


def test_missing_constants_are_named() -> None:
    content = changed()
    del content["constants"]["sync_cycles"]
    with pytest.raises(ConfigError, match="constants sync_cycles are missing"):
        Device.from_mapping(content, "device mine")
    with pytest.raises(ConfigError, match="has no constants"):
        Device.from_mapping({}, "device mine")


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"Invalid device c60, options: .* Nearest: c600"):
        load_device("c60")
