# SPDX-License-Identifier: Apache-2.0
"""`layer_per_ipu`: whether it adds up, and what would."""

from __future__ import annotations

from collections.abc import Sequence

from poptransformer.errors import ConfigError


def check_placement(layer_per_ipu: Sequence[int], layers: int) -> None:
    """Raises unless stages hold whole numbers of layers, which add up to the model's.

    Raises:
        ConfigError: they do not.
    """
    if any(not isinstance(count, int) or count < 0 for count in layer_per_ipu):
        raise ConfigError(
            f"layer_per_ipu must hold numbers of layers, 0 or more, that add up to {layers}, found "
            f"{list(layer_per_ipu)}."
        )
    check_sum(layer_per_ipu, layers)


def check_sum(layer_per_ipu: Sequence[int], layers: int) -> None:
    """Raises unless the numbers add up to the model's layers, and says what would.

    Raises:
        ConfigError: they do not.
    """
    if sum(layer_per_ipu) == layers and layer_per_ipu:
        return
    raise ConfigError(
        f"layer_per_ipu sums to {sum(layer_per_ipu)}, model has {layers} layers; try {balanced(layer_per_ipu, layers)}"
    )


def balanced(layer_per_ipu: Sequence[int], layers: int) -> str:
    """Spreads the layers over the stages that have some; those that are empty stay so."""
    filled = [index for index, count in enumerate(layer_per_ipu) if count > 0] or list(range(len(layer_per_ipu) or 1))
    counts = [0] * max(1, len(layer_per_ipu))
    share, rest = divmod(layers, len(filled))
    for place, index in enumerate(filled):
        counts[index] = share + (place >= len(filled) - rest)
    return "[" + ",".join(map(str, counts)) + "]"
