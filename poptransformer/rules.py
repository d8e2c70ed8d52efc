# SPDX-License-Identifier: Apache-2.0
"""Rules that configuration values are checked by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from poptransformer.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which values a key accepts.

    Attributes:
        expected: the values in words, as they follow "must be".
        accepts: whether a value is one of them.
        example: an accepted value, as written on a command line.
        options: the values, where the key takes one of a few words.
    """

    expected: str
    accepts: Callable[[Any], bool]
    example: str
    options: tuple[str, ...] = ()

    def check(self, key: str, value: Any) -> None:
        """Raises unless the value is accepted.

        Args:
            key: the key's full name, such as `model.topk`.
            value: what it was set to.

        Raises:
            ConfigError: names the key, what was expected, what was found and a value that would do.
        """
        if self.accepts(value):
            return
        if self.options:
            name = key.rpartition(".")[2]
            hint = did_you_mean(str(value), self.options)
            raise ConfigError(f"Invalid {name} {value}, options: {list(self.options)}. {hint}")
        found = "null" if value is None else f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{key} must be {self.expected}, found {found}. For example: {key}={self.example}")


def or_null(rule: Rule) -> Rule:
    """Returns a rule that accepts null too."""
    return dataclasses.replace(
        rule, expected=f"{rule.expected}, or null", accepts=lambda value: value is None or rule.accepts(value)
    )


AUTO = "auto"


def or_auto(rule: Rule) -> Rule:
    """Returns a rule that accepts `auto` too, which asks the planner."""
    return dataclasses.replace(
        rule, expected=f"{rule.expected}, or auto", accepts=lambda value: value == AUTO or rule.accepts(value)
    )


def choice(*options: str) -> Rule:
    """Returns a rule for one of some words, in capitals or not."""
    # YAML 1.1 reads an unquoted `off` as false.
    return Rule(
        f"one of {', '.join(options)}",
        lambda value: str(value).lower() in options or (value is False and "off" in options),
        options[0],
        options,
    )


def one_of(*options: int | str) -> Rule:
    """Returns a rule for one of some numbers and words."""
    names = tuple(map(str, options))
    return Rule(f"one of {', '.join(names)}", lambda value: _is_member(value, options), names[0], names)


def _is_member(value: Any, options: Sequence[int | str]) -> bool:
    return any(type(value) is type(option) and value == option for option in options)


def integer(least: int, most: int | None = None) -> Rule:
    """Returns a rule for integers from `least` to `most`."""
    expected = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    example = str(max(least, 1))
    return Rule(expected, lambda x: is_integer(x) and least <= x and (most is None or x <= most), example)


def is_integer(value: Any) -> bool:
    """Whether the value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether the value is an integer or a float; true and false are not."""
    return is_integer(value) or isinstance(value, float)


def is_list(value: Any, item: Callable[[Any], bool]) -> bool:
    """Whether the value is a list whose every member passes `item`."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(item, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return is_integer(value) and value >= 0


_TWO_TEXTS = '\'["one","two"]\''

FLAG = Rule("true or false", lambda x: isinstance(x, bool), "true")
TEXT = Rule("a text", lambda x: isinstance(x, str) and x != "", "name")
TEXT_LIST = Rule("a list of texts", lambda x: is_list(x, _is_text), _TWO_TEXTS)
TEXTS = Rule("a text or a list of texts", lambda x: _is_text(x) or TEXT_LIST.accepts(x), _TWO_TEXTS)
COUNTS = Rule("a list of integers of at least 0", lambda x: is_list(x, _is_count), "[2,3]")
NOT_NEGATIVE = Rule("a number of at least 0", lambda x: is_number(x) and 0 <= x < float("inf"), "0.7")
POSITIVE = Rule("a number above 0", lambda x: is_number(x) and 0 < x < float("inf"), "1.1")
FRACTION = Rule("a number from 0 to 1", lambda x: is_number(x) and 0 <= x <= 1, "0.05")
POSITIVE_FRACTION = Rule("a number above 0 and at most 1", lambda x: is_number(x) and 0 < x <= 1, "0.9")
