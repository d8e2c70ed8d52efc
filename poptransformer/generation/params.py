# SPDX-License-Identifier: Apache-2.0
"""How a row is generated: the settings, their checks, and how a batch of them becomes arrays."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from poptransformer.errors import ConfigError, did_you_mean

# Dividing by less overflows fp32; the distribution has long been all on one token there.
_COLDEST = 1e-6


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Settings of one row; the default is greedy.

    Attributes:
        max_new_tokens: most tokens to generate.
        temperature: divides the logits; 0 is greedy.
        top_k: draws from the k likeliest tokens; 1 is greedy, 0 is off.
        top_p: draws from the likeliest tokens that make up this probability; 1 is off.
        min_p: drops tokens less likely than `min_p` times the likeliest; 0 is off.
        repetition_penalty: above 1 makes tokens of the prompt and the answer so far less likely; 1 is off.
        seed: 0 to 2**63 - 1. The same seed gives the same text, whatever shares the batch; None takes a new
            one each time.
        stop: strings that end the text; they are not part of it.
        num_beams: beams of a beam search; 1 is none.
        length_penalty: a beam's score is divided by its length to this power; above 0 favours long answers.
        early_stopping: when a beam search ends: True with `num_beams` finished answers, False when a better
            one is unlikely, "never" when there can be none.
        ignore_eos: goes on after a stop token.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("num_beams", 1)):
            _check_integer(name, getattr(self, name), least)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0)
        _check_number("temperature", self.temperature, 0.0)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("length_penalty", self.length_penalty, -math.inf)
        _check_number("repetition_penalty", self.repetition_penalty, 1e-6)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop must be strings of at least one character, found {self.stop!r}.")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ConfigError(f"Invalid early_stopping {self.early_stopping!r}, options: [True, False, 'never'].")
        if not isinstance(self.ignore_eos, bool):
            raise ConfigError(f"ignore_eos must be true or false, found {self.ignore_eos!r}.")
        if self.num_beams > 1 and not self.greedy:
            raise ConfigError(
                f"num_beams is {self.num_beams}, but beam search does not draw: leave out temperature, "
                "top_k, top_p and min_p, or set num_beams=1."
            )

    @classmethod
    def given(cls, **settings: Any) -> SamplingParams:
        """Makes params from what a caller gave; None counts as not given.

        Whoever sets a temperature, top_p or min_p means to sample: top_k is then off unless it is given too.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        if settings.keys() & {"temperature", "top_p", "min_p"}:
            settings.setdefault("top_k", 0)
        return cls(**settings)

    @property
    def greedy(self) -> bool:
        """Whether each token is the likeliest one."""
        return self.top_k == 1 or self.temperature < _COLDEST


@dataclasses.dataclass(frozen=True)
class SamplingArrays:
    """The settings of a batch as the `Sample` op takes them, one value per row.

    Attributes:
        temperature: fp32 `[B]`.
        top_k: int64 `[B]`.
        top_p: fp32 `[B]`.
        min_p: fp32 `[B]`.
        repetition_penalty: fp32 `[B]`.
        seed: int64 `[B]`, not negative.
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    repetition_penalty: np.ndarray
    seed: np.ndarray


def arrays(params: Sequence[SamplingParams]) -> SamplingArrays:
    """Returns the settings of a batch, with a new seed for every row that has none."""

    def floats(values: Iterable[float]) -> np.ndarray:
        return np.array(list(values), np.float32)

    return SamplingArrays(
        temperature=floats(0.0 if row.greedy else row.temperature for row in params),
        top_k=np.array([row.top_k for row in params], np.int64),
        top_p=floats(row.top_p for row in params),
        min_p=floats(row.min_p for row in params),
        repetition_penalty=floats(row.repetition_penalty for row in params),
        seed=np.array([_new_seed() if row.seed is None else row.seed for row in params], np.int64),
    )


def _new_seed() -> int:
    return int.from_bytes(os.urandom(8)) >> 1  # as secrets.randbits(63), without importing hmac and random


def sampling_rows(batch: int, **settings: Any) -> list[SamplingParams]:
    """Spreads what a user wrote over the rows of a batch.

    Args:
        batch: number of rows.
        **settings: attributes of `SamplingParams`; each a value for all rows, or a list of one value per row.
            A list of strings for `stop` goes to every row, a list of lists gives each row its own. None
            counts as not given.

    Raises:
        ConfigError: an unknown name, a list that does not fit the batch, or a bad value.
    """
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in settings:
        if name not in names:
            raise ConfigError(f"Unknown generation setting {name!r}. {did_you_mean(name, names)}")
    if settings.get("max_new_tokens") is None:
        raise ConfigError("max_new_tokens is missing; give the number of tokens to generate.")
    columns = {name: _spread(name, value, batch) for name, value in settings.items()}
    return [SamplingParams.given(**{name: column[row] for name, column in columns.items()}) for row in range(batch)]


def _spread(name: str, value: Any, batch: int) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not _is_list(value):
        return [(value,) if name == "stop" and value is not None else value] * batch
    if name == "stop":
        if all(isinstance(item, str) for item in value):
            return [tuple(value)] * batch
        value = [tuple(item or ()) if item is None or _is_list(item) else (item,) for item in value]
    if len(value) != batch:
        raise ConfigError(
            f"{name} has {len(value)} values, but there are {batch} prompts. Give one value for all, or one per prompt."
        )
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_integer(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value < 2**63:
        raise ConfigError(f"{name} must be an integer from {least} to 2**63 - 1, found {value!r}.")


def _check_number(name: str, value: Any, least: float, most: float = math.inf) -> None:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not least <= value <= most:
        low = "" if least == -math.inf else f" of at least {least:g}"
        limits = low if most == math.inf else f" from {least:g} to {most:g}"
        raise ConfigError(f"{name} must be a finite number{limits}, found {value!r}.")
