# SPDX-License-Identifier: Apache-2.0
"""Learning rates by name, as functions of the step; a list of them runs one after the other."""

from __future__ import annotations

import bisect
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.rules import is_list, is_number

Schedule = Callable[[int], float]


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: learning_rate


def exponential(initial_learning_rate: float, total_iters: int, decay_rate: float, staircase: bool = False) -> Schedule:
    """`initial * decay_rate ** (step / total_iters)`; `staircase` takes whole multiples alone."""
    return lambda step: initial_learning_rate * decay_rate ** _progress(step / total_iters, staircase)


def piecewise_constant(learning_rates: Sequence[float], milestones: Sequence[int]) -> Schedule:
    """The first rate up to and with the first milestone, and so on; one rate more than milestones."""
    if len(learning_rates) != len(milestones) + 1 or list(milestones) != sorted(milestones):
        raise ConfigError(
            f"PiecewiseConstant needs rising milestones and one learning rate more, found {len(milestones)} and "
            f"{len(learning_rates)}."
        )
    return lambda step: learning_rates[bisect.bisect_left(milestones, step)]


def polynomial(
    initial_learning_rate: float, end_learning_rate: float, total_iters: int, power: float = 1.0, cycle: bool = False
) -> Schedule:
    """From the initial rate to the end rate; `cycle` begins a longer decay where one has ended."""

    def rate(step: int) -> float:
        span = float(total_iters)
        if cycle:
            span *= max(1, math.ceil(step / total_iters))
        rest = 1.0 - min(step, span) / span
        return (initial_learning_rate - end_learning_rate) * rest**power + end_learning_rate

    return rate


def linear(initial_learning_rate: float, end_learning_rate: float, total_iters: int) -> Schedule:
    """A straight line from the initial rate to the end rate."""
    return polynomial(initial_learning_rate, end_learning_rate, total_iters)


def inverse_exponential_time_decay(
    initial_learning_rate: float, step_exponent: float, total_iters: int, decay_rate: float, staircase: bool = False
) -> Schedule:
    """`initial / (1 + decay_rate * step ** step_exponent / total_iters)`."""
    return lambda step: (
        initial_learning_rate / (1.0 + decay_rate * _progress(step**step_exponent / total_iters, staircase))
    )


def cosine_decay(initial_learning_rate: float, end_learning_rate: float, total_iters: int) -> Schedule:
    """Half a cosine from the initial rate to the end rate, which stays."""

    def rate(step: int) -> float:
        share = 0.5 * (1.0 + math.cos(math.pi * min(step, total_iters) / total_iters))
        return end_learning_rate + (initial_learning_rate - end_learning_rate) * share

    return rate


def cosine_annealing(
    initial_learning_rate: float,
    T_max: int,  # torch's name
    eta_min: float = 0.0,
) -> Schedule:
    """A cosine of period `2 * T_max` (torch.optim.lr_scheduler.CosineAnnealingLR)."""
    return lambda step: eta_min + (initial_learning_rate - eta_min) * 0.5 * (1.0 + math.cos(math.pi * step / T_max))


def step_decay(initial_learning_rate: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """Times `gamma` every `step_size` steps."""
    return lambda step: initial_learning_rate * gamma ** (step // step_size)


def multi_step(initial_learning_rate: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Times `gamma` at each milestone."""
    return lambda step: initial_learning_rate * gamma ** bisect.bisect_right(sorted(milestones), step)


def lambda_schedule(initial_learning_rate: float, lr_lambda: Callable[[int], float]) -> Schedule:
    """Times what a function of the step gives; `default_params_fn` can set one."""
    return lambda step: initial_learning_rate * lr_lambda(step)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "Constant": constant,
    "Exponential": exponential,
    "PiecewiseConstant": piecewise_constant,
    "Polynomial": polynomial,
    "Linear": linear,
    "InverseExponentialTimeDecay": inverse_exponential_time_decay,
    "CosineDecay": cosine_decay,
    "CosineAnnealing": cosine_annealing,
    "Step": step_decay,
    "MultiStep": multi_step,
    "Lambda": lambda_schedule,
}
_OTHER_NAMES = {"decay_steps": "total_iters", "steps": "total_iters"}  # what 1.6 called it


def _progress(share: float, staircase: bool) -> float:
    return math.floor(share) if staircase else share


def create_schedule(spec: float | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    Args:
        spec: a rate; a mapping with a `scheduler` of `SCHEDULES` and its arguments; or a list of such, each but the
            last with `total_iters`, that run one after the other.

    Raises:
        ConfigError: a name or argument is unknown or missing.
    """
    if is_number(spec):
        return constant(float(spec))  # type: ignore[arg-type]
    if isinstance(spec, Mapping):
        return _one(spec)[0]
    if not is_list(spec, lambda part: isinstance(part, Mapping)) or not spec:
        raise ConfigError(f"optimizer.learning_rate must be a number, a schedule or a list of them, found {spec!r}.")
    return _in_turn([_one(part) for part in spec])  # type: ignore[union-attr]


def _in_turn(parts: Sequence[tuple[Schedule, int | None]]) -> Schedule:
    if any(length is None for _, length in parts[:-1]):
        raise ConfigError(
            "Each schedule of a list but the last needs total_iters, the steps after which the next begins."
        )

    def rate(step: int) -> float:
        for schedule, length in parts[:-1]:
            if step < (length or 0):
                return schedule(step)
            step -= length or 0
        return parts[-1][0](step)

    return rate


def _one(spec: Mapping[str, Any]) -> tuple[Schedule, int | None]:
    """A schedule, and the steps that it is meant for."""
    arguments = {_OTHER_NAMES.get(str(key), str(key)): value for key, value in spec.items()}
    name = str(arguments.pop("scheduler", ""))
    known = {key.lower(): key for key in SCHEDULES}
    found = known.get(name.lower().removesuffix("lr"))
    if found is None:
        raise ConfigError(f"Invalid scheduler {name}, options: {list(SCHEDULES)}. {did_you_mean(name, SCHEDULES)}")
    parameters = inspect.signature(SCHEDULES[found]).parameters
    length = arguments.get("total_iters")
    if "total_iters" not in parameters:
        arguments.pop("total_iters", None)
    for key in arguments:
        if key not in parameters:
            raise ConfigError(f"The scheduler {found} takes no {key}. {did_you_mean(key, parameters)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in arguments]
    if missing:
        raise ConfigError(f"The scheduler {found} needs {', '.join(missing)}.")
    return SCHEDULES[found](**arguments), length


def attach(schedule: Schedule, optimizer: Optimizer) -> LambdaLR:
    """Lets a schedule set an optimizer's rate: that of step 0 now, the next one after each `step()`."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] = 1.0  # the schedule gives rates, not factors
    return LambdaLR(optimizer, schedule)
