# SPDX-License-Identifier: Apache-2.0
"""IPUs as data: a YAML file for each, every constant with its unit and its source.

A machine is added by adding a file, here or in `conf/device` of an example.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from poptransformer.errors import ConfigError, did_you_mean

MATH = ("fp32", "fp16", "fp8")


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of IPU; `sources` says where each constant comes from.

    Attributes:
        name: the file's name.
        description: one sentence.
        tiles: tiles of an IPU.
        tile_bytes: SRAM of a tile, in bytes.
        clock_hz: cycles per second.
        workers: threads of a tile.
        amp_fp32: FLOP per cycle and tile of the matrix unit, for fp32 inputs.
        amp_fp16: the same for fp16.
        amp_fp8: the same for 8-bit floats; 0 where there are none.
        amp_feed_cycles: cycles to load a 16x16 block of fp16 weights from interleaved memory.
        amp_feed_standard_cycles: the same from standard memory.
        amp_call_cycles: cycles of a call of the matrix kernel.
        amp_fp32_feed_factor: how many times longer a block of fp32 weights takes.
        amp_factor: what the matrix kernel's cycles are multiplied by, from calibration.
        gemv_bytes: bytes of weights per cycle and tile that a dot-product kernel reads.
        softmax_cycles: cycles for one score of attention: exponential, sum and rescaling.
        launch_cycles: cycles to start a kernel.
        copy_bytes: bytes per cycle that a tile copies or a vector operation reads.
        copy_call_cycles: cycles of a call of a copy.
        exchange_bytes: bytes per cycle that a tile receives.
        exchange_paired_bytes: the same where both tiles of a pair receive the same data.
        sync_cycles: cycles of a sync within an IPU.
        global_sync_cycles: cycles of a sync of the whole machine with the host.
        fragment_cycles: cycles for each piece of an exchange.
        link_bytes_per_s: bytes per second between neighbouring IPUs, each way.
        link_efficiency: the part of it that data get.
        ipu_sync_seconds: seconds in the formula for a sync of several IPUs.
        max_ipus: IPUs that can be linked.
        host_bytes_per_s: bytes per second from and to the host.
        memory_proportion: part of a tile that one op may use for temporaries.
        code_bytes: code on every tile.
        code_bytes_per_op: code on every tile for each distinct op.
        sources: constant -> (unit, source).
    """

    name: str
    description: str
    tiles: int
    tile_bytes: int
    clock_hz: float
    workers: int
    amp_fp32: int
    amp_fp16: int
    amp_fp8: int
    amp_feed_cycles: float
    amp_feed_standard_cycles: float
    amp_call_cycles: float
    amp_fp32_feed_factor: float
    amp_factor: float
    gemv_bytes: float
    softmax_cycles: float
    launch_cycles: float
    copy_bytes: float
    copy_call_cycles: float
    exchange_bytes: float
    exchange_paired_bytes: float
    sync_cycles: float
    global_sync_cycles: float
    fragment_cycles: float
    link_bytes_per_s: float
    link_efficiency: float
    ipu_sync_seconds: float
    max_ipus: int
    host_bytes_per_s: float
    memory_proportion: float
    code_bytes: int
    code_bytes_per_op: int
    sources: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def has_fp8(self) -> bool:
        """Whether the matrix unit takes 8-bit floats."""
        return self.amp_fp8 > 0

    @property
    def ipu_bytes(self) -> int:
        """SRAM of an IPU in bytes."""
        return self.tiles * self.tile_bytes

    def amp_flops(self, math_type: str) -> int:
        """FLOP per cycle and tile for inputs of `fp32`, `fp16` or `fp8`."""
        return {"fp32": self.amp_fp32, "fp16": self.amp_fp16, "fp8": self.amp_fp8}[math_type]

    def peak(self, math_type: str) -> float:
        """Peak FLOP per second of an IPU."""
        return self.amp_flops(math_type) * self.tiles * self.clock_hz

    def seconds(self, cycles: float) -> float:
        """Cycles as seconds."""
        return cycles / self.clock_hz

    def ipu_sync_cycles(self, ipus: int) -> int:
        """Cycles of a sync of `ipus` IPUs (poplibs_test)."""
        return math.ceil(self.ipu_sync_seconds * self.clock_hz * (1 + ipus / 4) * 2)

    def link_cycles(self, nbytes: float) -> float:
        """Cycles to send `nbytes` to a neighbouring IPU, without the sync."""
        return nbytes / (self.link_efficiency * self.link_bytes_per_s) * self.clock_hz

    def constants(self) -> dict[str, dict[str, Any]]:
        """Every constant with its value, unit and source, as in the file."""
        return {
            name: {"value": getattr(self, name), "unit": unit, "source": source}
            for name, (unit, source) in self.sources.items()
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: str = "the device") -> Device:
        """Makes a device of a file's content.

        Args:
            values: `name`, `description` and `constants`: name -> `value`, `unit`, `source`.
            origin: what errors call it.

        Raises:
            ConfigError: a constant is unknown, missing, negative or no number, or has no source.
        """
        given = values.get("constants")
        if not isinstance(given, Mapping):
            raise ConfigError(f"{origin} has no constants; expected a group of them, as in {_folder()}/c600.yaml.")
        names = [field.name for field in dataclasses.fields(cls) if field.name not in _DESCRIPTIVE]
        for name in given:
            if name not in names:
                raise ConfigError(f"{origin}: unknown constant {name}. {did_you_mean(str(name), names)}")
        missing = [name for name in names if name not in given]
        if missing:
            raise ConfigError(f"{origin}: constants {', '.join(missing)} are missing; copy them from another device.")
        numbers = {name: _number(f"{origin}: {name}", given[name], is_free=name == "amp_fp8") for name in names}
        sources = {name: (str(given[name].get("unit", "")), str(given[name]["source"])) for name in names}
        return cls(
            name=str(values.get("name", "device")),
            description=str(values.get("description", "")),
            sources=sources,
            **numbers,
        )


_DESCRIPTIVE = ("name", "description", "sources")


def _number(where: str, constant: Any, is_free: bool) -> Any:
    if not isinstance(constant, Mapping) or "value" not in constant or not constant.get("source"):
        raise ConfigError(f"{where} must have a value and a source, found {constant!r}.")
    value = constant["value"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0 or (value == 0 and not is_free):
        raise ConfigError(f"{where} must be a number above 0, found {value!r}.")
    return value


def config_folder() -> Path:
    """The folder whose group `device` holds the devices that come with the package."""
    return Path(str(importlib.resources.files("poptransformer.ipu"))) / "conf"


def _folder() -> Path:
    return config_folder() / "device"


@functools.cache
def device_names() -> tuple[str, ...]:
    """Names of the devices that come with the package."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


@functools.cache
def device_content(name: str) -> dict[str, Any]:
    """The content of a device's file.

    Raises:
        ConfigError: there is no such device.
    """
    if name not in device_names():
        raise ConfigError(
            f"Invalid device {name}, options: {list(device_names())}. {did_you_mean(name, device_names())}"
        )
    return yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


@functools.cache
def load_device(name: str) -> Device:
    """Returns a device that comes with the package.

    Raises:
        ConfigError: there is no such device, or its file is not right.
    """
    return Device.from_mapping(device_content(name), f"device {name}")
