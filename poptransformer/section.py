# SPDX-License-Identifier: Apache-2.0
"""Groups of configuration keys: dataclasses whose fields are the keys, each with a default and a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.rules import Rule


def setting(default: Any, rule: Rule) -> Any:
    """Declares a key of a section, with its default and the values it accepts."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def group(section: type[Section]) -> Any:
    """Declares a key of a section that is a section itself."""
    return setting(
        section(), _GroupRule("a group of keys", lambda value: isinstance(value, section), "{}", (), section)
    )


@dataclasses.dataclass(frozen=True)
class Section:
    """One group of keys. A subclass's fields are the keys, each with its default and its rule."""

    NAME: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.check(vars(self))

    @classmethod
    def names(cls) -> list[str]:
        """Returns the names of the section's keys."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns the keys with their defaults, as a dictionary of its own."""
        return {field.name: _plain(field.default) for field in dataclasses.fields(cls)}

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        """Checks the values of the section's keys; keys that are not the section's are passed over.

        Raises:
            ConfigError: for the first value that its key does not accept.
        """
        for field in dataclasses.fields(cls):
            if field.name in values:
                field.metadata["rule"].check(full_key(cls.NAME, field.name), values[field.name])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Makes the section from its part of a configuration.

        Raises:
            ConfigError: a key is unknown, or a value is not accepted.
        """
        check_keys(cls.NAME, values, cls.names())
        cls.check(values)
        return cls(
            **{
                field.name: _inner(field, values[field.name])
                for field in dataclasses.fields(cls)
                if field.name in values
            }
        )


@dataclasses.dataclass(frozen=True)
class _GroupRule(Rule):
    """Accepts a section, or the mapping that one is made of."""

    section: type[Section] = Section

    def check(self, key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self.section.from_mapping(value)
        else:
            super().check(key, value)


def _plain(default: Any) -> Any:
    if isinstance(default, Section):
        return type(default).defaults()
    return list(default) if isinstance(default, tuple) else default


def _inner(field: dataclasses.Field[Any], value: Any) -> Any:
    rule = field.metadata["rule"]
    return rule.section.from_mapping(value) if isinstance(rule, _GroupRule) and isinstance(value, Mapping) else value


def full_key(section: str, key: str) -> str:
    """Returns a key's name as it is written on a command line, such as `model.topk`."""
    return f"{section}.{key}" if section else key


def is_private(key: object) -> bool:
    """Whether a key is Hydra's (`_target_`) or the user's own (`_width`, for interpolations)."""
    return str(key).startswith("_")


def check_keys(section: str, keys: Iterable[str], known: Sequence[str]) -> None:
    """Raises `Unknown key <section>.<key>. Nearest: ...` for a key that is not among `known`."""
    for key in keys:
        if key not in known and not is_private(key):
            raise ConfigError(f"Unknown key {full_key(section, key)}. {did_you_mean(str(key), known)}")
