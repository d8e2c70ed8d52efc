# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's `config.json`, as a mapping with attribute access."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.config_values import checked, checked_rope, required
from poptransformer.checkpoint.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    MissingConfigKeyError,
)

_DEFAULT_ROPE_THETA = 10000.0  # what transformers assumes where a config names none
_ROPE_TYPES_WITH_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Args:
        path: The file.

    Raises:
        CheckpointNotFoundError: If it does not exist.
        CorruptCheckpointError: If it is not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CheckpointNotFoundError(f"{path} is not there; expected a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value


class HFConfig(Mapping[str, Any]):
    """Model configuration with the names Hugging Face gives them.

    `config.hidden_size` and `config["hidden_size"]` are the same; `config.get(name, default)` takes missing keys and
    null. Values that models compute with are checked (`config_values.py`); `raw` has them as they were read.

    Args:
        raw: The parsed `config.json`, or what stands for it.
        source: What error messages call it, for example the file's path.

    Attributes:
        raw: The dictionary as it was read.
        source: As given.
    """

    raw: dict[str, Any]
    source: str

    def __init__(self, raw: Mapping[str, Any], source: str = "the configuration") -> None:
        # Straight into __dict__, as __setattr__ below refuses changes.
        self.__dict__["raw"] = dict(raw)
        self.__dict__["source"] = source

    @classmethod
    def from_file(cls, path: Path) -> HFConfig:
        """Read a `config.json`.

        Args:
            path: The file.

        Raises:
            CheckpointNotFoundError: If it does not exist.
            CorruptCheckpointError: If it is not a JSON object.
        """
        return cls(read_json_object(path), str(path))

    def __getitem__(self, key: str) -> Any:
        try:
            value = checked(key, self.raw[key], self.source)
        except KeyError:
            raise MissingConfigKeyError(key, self.source, self.raw) from None
        return value

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look for dunder names before `raw` exists.
        if name.startswith("__") or "raw" not in self.__dict__:
            raise AttributeError(name)
        return required(name, self[name], self.source)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"HFConfig is read-only; make a new one with {{**config.raw, {name!r}: ...}}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __contains__(self, key: object) -> bool:
        return key in self.raw

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or `default` where the config does not define the key.

        Raises:
            CorruptCheckpointError: If the value is of the wrong kind.
        """
        return checked(key, self.raw[key], self.source) if key in self.raw else default

    def __repr__(self) -> str:
        return f"HFConfig({self.raw.get('model_type', 'no model_type')}, {self.source})"

    def rope(self) -> dict[str, Any]:
        """Return the rotary embedding's parameters, however the file spells them.

        transformers 5 writes one `rope_parameters` object; version 4 wrote `rope_theta` and `rope_scaling`,
        whose type was called `type` at first.

        Returns:
            `rope_type` (`default` where none is named), `rope_theta`, and what else the type needs, such as
            `factor`. `original_max_position_embeddings` is filled in for the types that need it.

        Raises:
            CorruptCheckpointError: If the parameters are not an object, differ between layer types, lack what their
                type needs, or are of the wrong kind.
        """
        given = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise CorruptCheckpointError(f"rope_scaling in {self.source} is {given!r}; expected an object or null")
        if given and all(isinstance(value, Mapping) for value in given.values()):
            raise CorruptCheckpointError(
                f"rope_parameters in {self.source} differ between layer types ({', '.join(given)}); "
                "expected one set for the whole model"
            )
        rope = {key: value for key, value in given.items() if key != "type"}
        rope["rope_type"] = given.get("rope_type") or given.get("type") or "default"
        rope.setdefault("rope_theta", self.raw.get("rope_theta") or _DEFAULT_ROPE_THETA)
        if self.raw.get("partial_rotary_factor") is not None:
            rope.setdefault("partial_rotary_factor", self.raw["partial_rotary_factor"])
        if rope["rope_type"] in _ROPE_TYPES_WITH_ORIGINAL_LENGTH:
            length = self.raw.get("original_max_position_embeddings")
            if length is not None:
                rope["original_max_position_embeddings"] = length
            elif "max_position_embeddings" in self.raw:
                rope.setdefault("original_max_position_embeddings", self.raw["max_position_embeddings"])
        return checked_rope(rope, self.source)
