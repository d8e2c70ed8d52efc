# SPDX-License-Identifier: Apache-2.0
"""The config group `device`: the emulated IPUs that come with the package."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from poptransformer.ipu.device import device_content, device_names

GROUP = "device"
PROVIDER = "poptransformer"


class DeviceSource(ConfigSource):
    """Shows Hydra the files in `poptransformer/ipu/devices` as a group; one is read when it is asked for.

    Storing all of them in Hydra's store would read each at every start of every command.
    """

    @staticmethod
    def scheme() -> str:
        """Begins the paths of this source."""
        return "poptransformer-devices"

    def load_config(self, config_path: str) -> ConfigResult:
        """Returns the content of a device's file.

        Raises:
            ConfigLoadError: there is no such device.
        """
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found: {config_path}")
        config = OmegaConf.create(device_content(_name(config_path)))
        return ConfigResult(self.provider, self.full_path(), config, self._get_header_dict(""))

    def is_group(self, config_path: str) -> bool:
        """Whether this is the root or the group."""
        return config_path.strip("/") in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether this is `device/` and the name of a device, with or without its ending."""
        group, _, _ = config_path.strip("/").rpartition("/")
        return group == GROUP and _name(config_path) in device_names()

    def available(self) -> bool:
        """The files are part of the package."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Returns the group, or the names of the devices."""
        is_root = not config_path.strip("/")
        kind = ObjectType.GROUP if is_root else ObjectType.CONFIG
        if not self.is_group(config_path) or results_filter not in (None, kind):
            return []
        return [GROUP] if is_root else sorted(device_names())


class DeviceSearchPath(SearchPathPlugin):
    """Puts the devices behind the application's own files, so that its `conf/device` goes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds them to what Hydra searches."""
        search_path.append(PROVIDER, f"{DeviceSource.scheme()}://")


def _name(config_path: str) -> str:
    return config_path.rpartition("/")[2].removesuffix(".yaml")
