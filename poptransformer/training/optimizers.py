# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name: torch's, with the layers API's defaults, and LAMB."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer

from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.training.lamb import Lamb

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "Adadelta": optim.Adadelta,
    "Adafactor": optim.Adafactor,
    "Adagrad": optim.Adagrad,
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
    "Adamax": optim.Adamax,
    "ASGD": optim.ASGD,
    "Lamb": Lamb,
    "NAdam": optim.NAdam,
    "RAdam": optim.RAdam,
    "RMSprop": optim.RMSprop,
    "Rprop": optim.Rprop,
    "SGD": optim.SGD,
}
# Where the layers API differs from torch.
DEFAULTS: dict[str, dict[str, Any]] = {"Adam": {"eps": 1e-6}, "AdamW": {"eps": 1e-6, "weight_decay": 0.0}}

# Keys of the section `optimizer` that are not arguments of the optimizer.
TRAINER_KEYS = ("optimizer_type", "learning_rate", "loss_scaling_factor", "max_gradient_norm", "max_gradient_value")
_OTHER_NAMES = {"weight_decay_rate": "weight_decay", "epsilon": "eps"}
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def optimizer_class(name: str) -> type[Optimizer]:
    """Returns the optimizer of that name, in capitals or not.

    Raises:
        ConfigError: there is none.
    """
    known = {key.lower(): key for key in OPTIMIZERS}
    found = known.get(str(name).lower())
    if found is None:
        raise ConfigError(
            f"Invalid optimizer_type {name}, options: {list(OPTIMIZERS)}. {did_you_mean(name, OPTIMIZERS)}"
        )
    return OPTIMIZERS[found]


def optimizer_arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the optimizer's own arguments out of the section `optimizer`.

    Raises:
        ConfigError: a key is unknown.
    """
    kind = optimizer_class(params.get("optimizer_type", "AdamW"))
    name = next(key for key, value in OPTIMIZERS.items() if value is kind)
    known = [key for key in inspect.signature(kind).parameters if key not in ("params", "lr")]
    arguments = dict(DEFAULTS.get(name, {}))
    betas = [params.get("beta1", 0.9), params.get("beta2", 0.999)]
    for key, value in params.items():
        argument = _OTHER_NAMES.get(key, key)
        if key in TRAINER_KEYS or (key == "weight_decay_rate" and value == 0):
            continue
        if key in ("beta1", "beta2") and "betas" in known:
            arguments["betas"] = tuple(betas)
        elif key == "correct_bias":
            if value is not True:
                raise ConfigError("optimizer.correct_bias must be true: torch's optimizers correct their means' bias.")
        elif argument in known:
            arguments[argument] = tuple(value) if isinstance(value, list) else value
        else:
            options = [*known, *TRAINER_KEYS]
            raise ConfigError(f"Unknown key optimizer.{key} for {name}. {did_you_mean(key, options)}")
    return arguments


def create_optimizer(params: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """Makes the optimizer that the section `optimizer` describes, over a model's trainable parameters.

    Biases and norms have no weight decay. The learning rate is set by a schedule, see `schedules.attach`.

    Args:
        params: the section; `optimizer_type` is AdamW by default.
        model: whose parameters learn.

    Raises:
        ConfigError: a name or key is unknown, or nothing is trainable.
    """
    kind, arguments = optimizer_class(params.get("optimizer_type", "AdamW")), optimizer_arguments(params)
    decayed, plain = _groups(model)
    if not decayed and not plain:
        raise ConfigError("The model has no trainable parameters.")
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain}]
    if "weight_decay" in inspect.signature(kind).parameters:
        groups[1]["weight_decay"] = 0.0
    make: Any = kind
    return make([group for group in groups if group["params"]], lr=1.0, **arguments)


def _groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with and without weight decay."""
    norms = {id(weight) for module in model.modules() if isinstance(module, _NORMS) for weight in module.parameters()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            is_plain = id(weight) in norms or name.rpartition(".")[2] == "bias"
            (plain if is_plain else decayed).append(weight)
    return decayed, plain
