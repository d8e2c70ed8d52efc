# SPDX-License-Identifier: Apache-2.0
"""LAMB, the one optimizer of the layers API that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class Lamb(Optimizer):
    """Adam whose step is scaled, tensor by tensor, to the size of the weights (https://arxiv.org/abs/1904.00962).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: of the running means of gradients and of their squares.
        eps: added to the root of the squares.
        weight_decay: decoupled, and a part of what is scaled.
        adam: leave the scaling out.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adam: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adam": adam})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes one step; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = mean / (1 - beta1 ** state["step"])
        update = corrected / ((square / (1 - beta2 ** state["step"])).sqrt() + group["eps"])
        update.add_(weight, alpha=group["weight_decay"])
        trust = 1.0
        if not group["adam"]:
            weight_norm, update_norm = float(weight.norm()), float(update.norm())
            if weight_norm > 0 and update_norm > 0:
                trust = weight_norm / update_norm
        weight.add_(update, alpha=-group["lr"] * trust)
