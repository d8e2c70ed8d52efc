# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on: what was expected, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PopTransformerError(Exception):
    """Base class of every error this package raises on bad input."""


class ConfigError(PopTransformerError, ValueError):
    """A configuration value is unknown, out of range or contradicts another one."""


class LogitsError(PopTransformerError):
    """A model computed logits that no token can be chosen from."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The model's logits must be finite numbers, found {found}. Its weights hold NaN or infinity, or its "
            "activations overflow: check the checkpoint."
        )


class GraphError(PopTransformerError):
    """A layer or pass built something that is not a valid graph."""


def nearest(name: str, options: Iterable[str], limit: int = 3) -> list[str]:
    """Returns up to `limit` of `options` that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(options), n=limit, cutoff=0.5)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns the sentence `Nearest: a, b.`, or every option where none is near."""
    options = list(options)
    close = nearest(name, options)
    if close:
        return f"Nearest: {', '.join(close)}."
    return f"Options: {', '.join(sorted(options)) or 'none'}."
