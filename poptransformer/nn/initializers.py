# SPDX-License-Identifier: Apache-2.0
"""Weight initializers by name. torch ships most of them; what it lacks is TensorFlow's variance scaling."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import init

from poptransformer.build import check_choice
from poptransformer.errors import ConfigError, did_you_mean

Initializer = Callable[[torch.Tensor], Any]
InitializerSpec = str | Mapping[str, Any] | Initializer

# Standard deviation of a unit normal that is cut off at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


def _normal(tensor: torch.Tensor, mean: float = 0.0, std: float = 0.05) -> torch.Tensor:
    return init.normal_(tensor, mean, std)


def _uniform(tensor: torch.Tensor, a: float = -0.05, b: float = 0.05) -> torch.Tensor:
    return init.uniform_(tensor, a, b)


def _truncated_normal(
    tensor: torch.Tensor, mean: float = 0.0, std: float = 0.05, a: float | None = None, b: float | None = None
) -> torch.Tensor:
    """The limits are values, as in torch; by default two standard deviations off the mean."""
    low, high = mean - 2 * std if a is None else a, mean + 2 * std if b is None else b
    return init.trunc_normal_(tensor, mean, std, low, high)


def _constant(tensor: torch.Tensor, val: float = 0.0) -> torch.Tensor:
    return init.constant_(tensor, val)


def _variance_scaling(
    tensor: torch.Tensor, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal"
) -> torch.Tensor:
    """Variance `scale / fan` (TensorFlow's VarianceScaling)."""
    check_choice("mode", mode, ("fan_in", "fan_out", "fan_avg"))
    check_choice("distribution", distribution, ("truncated_normal", "normal", "uniform"))
    fan_in, fan_out = init._calculate_fan_in_and_fan_out(tensor)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    std = math.sqrt(scale / max(1.0, fan))
    if distribution == "normal":
        return init.normal_(tensor, 0.0, std)
    if distribution == "uniform":
        return init.uniform_(tensor, -math.sqrt(3) * std, math.sqrt(3) * std)
    wide = std / _TRUNCATED_STD
    return init.trunc_normal_(tensor, 0.0, wide, -2 * wide, 2 * wide)


def _lecun_normal(tensor: torch.Tensor) -> torch.Tensor:
    return _variance_scaling(tensor)


def _lecun_uniform(tensor: torch.Tensor) -> torch.Tensor:
    return _variance_scaling(tensor, distribution="uniform")


INITIALIZERS: dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "ones": init.ones_,
    "zeros": init.zeros_,
    "eye": init.eye_,
    "uniform": _uniform,
    "normal": _normal,
    "truncated_normal": _truncated_normal,
    "xavier_normal": init.xavier_normal_,
    "xavier_uniform": init.xavier_uniform_,
    "glorot_normal": init.xavier_normal_,
    "glorot_uniform": init.xavier_uniform_,
    "kaiming_normal": init.kaiming_normal_,
    "kaiming_uniform": init.kaiming_uniform_,
    "lecun_normal": _lecun_normal,
    "lecun_uniform": _lecun_uniform,
    "variance_scaling": _variance_scaling,
}


def create_initializer(spec: InitializerSpec) -> Initializer:
    """Returns a function that fills a tensor in place.

    Args:
        spec: a name of `INITIALIZERS`, a mapping with such a `name` and the initializer's arguments, or a function
            of a tensor, which is returned as it is.

    Raises:
        ConfigError: an unknown name or argument.
    """
    if callable(spec):
        return spec
    arguments = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(arguments.pop("name", ""))
    check_choice("initializer", name, tuple(INITIALIZERS))
    known = list(inspect.signature(INITIALIZERS[name]).parameters)[1:]
    for argument in arguments:
        if argument not in known:
            raise ConfigError(f"The initializer {name} takes no {argument}. {did_you_mean(argument, known)}")
    return functools.partial(INITIALIZERS[name], **arguments)
