# SPDX-License-Identifier: Apache-2.0
"""The classes that a configuration names as `_target_`, and the keys that their constructors take."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from poptransformer.config import check_keys, is_private
from poptransformer.errors import ConfigError, did_you_mean


def find_target(key: str, path: object) -> Any:
    """Imports what `_target_` names.

    Args:
        key: the key's full name, such as `model._target_`.
        path: its value, such as `poptransformer.models.GPT2DecModel`.

    Raises:
        ConfigError: there is no such module, or no such name in it.
    """
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        found = "nothing" if path is None else repr(path)
        raise ConfigError(
            f"{key} must name a class as <module>.<class>, found {found}. "
            "For example: poptransformer.models.GPT2DecModel"
        )
    target, names = _import_longest(key, parts)
    for name in names:
        try:
            target = getattr(target, name)
        except AttributeError as error:
            if inspect.ismodule(target) and "__getattr__" in vars(target):
                raise ConfigError(f"{key} is {path}, but {error}") from None  # it knows what it has
            listed = [public for public in dir(target) if not is_private(public)]
            where = getattr(target, "__name__", parts[0])
            raise ConfigError(f"{key} is {path}, but {where} has no {name}. {did_you_mean(name, listed)}") from None
    if not callable(target):
        raise ConfigError(f"{key} is {path}, which is a {type(target).__name__}; expected a class.")
    return target


def _import_longest(key: str, parts: list[str]) -> tuple[Any, list[str]]:
    """Imports as many of `parts` as are modules; returns the last one and the parts that remain."""
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            return importlib.import_module(module), parts[end:]
        except ModuleNotFoundError as error:
            # Only what `_target_` names may be absent; a module that it imports may not.
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
    raise ConfigError(
        f"{key} is {'.'.join(parts)}, but there is no module {parts[0]}. "
        "Check the spelling, and that its folder is on the Python path."
    )


def accepted_keys(target: Any) -> tuple[list[str], bool]:
    """Returns the keyword arguments that a class or function takes.

    A constructor with `**kwargs` hands on to the next class of the method resolution order, so that one's
    parameters are collected too.

    Returns:
        The names, and whether it takes any other name as well.
    """
    if not inspect.isclass(target):
        return _keywords(target)
    names: list[str] = []
    for cls in target.__mro__:
        if cls is object or "__init__" not in vars(cls):
            continue
        own, passes_on = _keywords(vars(cls)["__init__"])
        names += [name for name in own if name not in names and name != "self"]
        if not passes_on:
            return names, False
    return names, target.__init__ is not object.__init__


def _keywords(function: Any) -> tuple[list[str], bool]:
    parameters = inspect.signature(function).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [parameter.name for parameter in parameters if parameter.kind in by_name]
    return names, any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def takes(target: Any, name: str) -> bool:
    """Whether a class or function takes a keyword argument of that name."""
    names, takes_any = accepted_keys(target)
    return takes_any or name in names


def check_target(section: str, values: Mapping[str, Any]) -> Any:
    """Checks that the class a group names exists and takes all of the group's keys; returns it.

    Raises:
        ConfigError: names the key that it does not take, and the nearest one that it does.
    """
    target = find_target(f"{section}._target_", values.get("_target_"))
    names, takes_any = accepted_keys(target)
    if not takes_any:
        check_keys(section, values, names)
    return target
