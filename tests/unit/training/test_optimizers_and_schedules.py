# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning rates by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from poptransformer.errors import ConfigError
from poptransformer.training import OPTIMIZERS, SCHEDULES, create_optimizer, create_schedule
from poptransformer.training.schedules import attach


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_its_state_can_be_saved(name: str) -> None:
    model = net()
    optimizer = create_optimizer({"optimizer_type": name.lower()}, model)
    schedule = attach(create_schedule(0.01 if name != "Adadelta" else 1.0), optimizer)
    x = torch.randn(32, 3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    create_optimizer({"optimizer_type": name}, net()).load_state_dict(optimizer.state_dict())


def test_adam_has_the_layers_apis_epsilon_and_spares_biases_and_norms() -> None:
    params = {"optimizer_type": "Adam", "weight_decay": 0.01, "beta1": 0.8, "correct_bias": True}
    matrices, others = create_optimizer(params, net()).param_groups
    assert (matrices["eps"], matrices["betas"]) == (1e-6, (0.8, 0.999))
    assert [len(group["params"]) for group in (matrices, others)] == [2, 4]
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.01, 0.0)


def test_one_step_of_lamb() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([1.0, -1.0])
    OPTIMIZERS["Lamb"]([weight], lr=0.1, eps=0.0).step()
    # The first update is the gradient's signs, of length sqrt(2); it is stretched to the weight's length, 5.
    expected = torch.tensor([3.0, 4.0]) - 0.1 * 5 / math.sqrt(2) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(weight.detach(), expected)


CASES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "Constant": ({"learning_rate": 0.3}, {0: 0.3, 99: 0.3}),
    "Exponential": (
        {"initial_learning_rate": 1.0, "total_iters": 10, "decay_rate": 0.5},
        {0: 1.0, 5: 0.5**0.5, 20: 0.25},
    ),
    "PiecewiseConstant": ({"learning_rates": [3, 2, 1], "milestones": [2, 4]}, {0: 3, 2: 3, 3: 2, 4: 2, 5: 1}),
    "Polynomial": (
        {"initial_learning_rate": 1.0, "end_learning_rate": 0.2, "total_iters": 10, "power": 2.0},
        {0: 1.0, 5: 0.4, 10: 0.2, 30: 0.2},
    ),
    "Linear": ({"initial_learning_rate": 1e-4, "end_learning_rate": 0.0, "steps": 1000}, {0: 1e-4, 500: 5e-5, 1000: 0}),
    "InverseExponentialTimeDecay": (
        {"initial_learning_rate": 1.0, "step_exponent": 2, "total_iters": 4, "decay_rate": 3.0},
        {0: 1.0, 2: 0.25},
    ),
    "CosineDecay": (
        {"initial_learning_rate": 1.0, "end_learning_rate": 0.5, "total_iters": 10},
        {0: 1.0, 5: 0.75, 10: 0.5, 15: 0.5},
    ),
    "CosineAnnealing": ({"initial_learning_rate": 1.0, "T_max": 10}, {0: 1.0, 5: 0.5, 10: 0.0, 20: 1.0}),
    "Step": ({"initial_learning_rate": 1.0, "step_size": 3, "gamma": 0.1}, {0: 1.0, 2: 1.0, 3: 0.1, 6: 0.01}),
    "MultiStep": ({"initial_learning_rate": 1.0, "milestones": [2, 5], "gamma": 0.5}, {1: 1.0, 2: 0.5, 5: 0.25}),
    "Lambda": ({"initial_learning_rate": 2.0, "lr_lambda": lambda step: 1 / (1 + step)}, {0: 2.0, 3: 0.5}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    arguments, expected = CASES[name]
    rate = create_schedule({"scheduler": name, **arguments})
    for step, value in expected.items():
        assert rate(step) == pytest.approx(value, abs=1e-12), step


def test_schedules_in_turn() -> None:
    warm_up = {"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": 1.0, "total_iters": 4}
    rate = create_schedule([warm_up, {**warm_up, "initial_learning_rate": 1.0, "end_learning_rate": 0.0}])
    assert [rate(step) for step in range(10)] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0]


def test_the_optimizer_gets_the_rate_of_its_step() -> None:
    optimizer = create_optimizer({"optimizer_type": "SGD"}, net())
    schedule = attach(create_schedule({"scheduler": "Step", "initial_learning_rate": 0.5, "step_size": 1}), optimizer)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 0.05, 0.005])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fast", "must be a number, a schedule or a list"),
        ([], "must be a number, a schedule or a list"),
        ({"scheduler": "Linear"}, "The scheduler Linear needs initial_learning_rate, end_learning_rate, total_iters"),
        ({"scheduler": "Constant", "learning_rat": 1}, "takes no learning_rat. Nearest: learning_rate"),
        ([{"scheduler": "Constant", "learning_rate": 1}] * 2, "needs total_iters"),
    ],
)
def test_wrong_schedules(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_schedule(spec)
