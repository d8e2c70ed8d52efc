# SPDX-License-Identifier: Apache-2.0
"""Params that the YAML file may leave out."""

from __future__ import annotations

from typing import Any


def set_defaults(params: dict[str, Any]) -> None:
    """Completes the params in place."""
    for name in ("train_input", "eval_input"):
        params[name].setdefault("batch_size", 32)
        params[name].setdefault("seed", params["runconfig"].get("seed", 1))
    params["model"].setdefault("dropout", 0.0)
    params["model"].setdefault("nonlinearity", "gelu")
