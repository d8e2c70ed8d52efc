# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the encoder, and what is said where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from poptransformer.errors import ConfigError
from poptransformer.quantization import FLOAT8_FORMATS, PER_CHANNEL, PER_TENSOR, WeightSpec


def test_defaults() -> None:
    assert WeightSpec() == WeightSpec("int4", 32, True, "search", False)
    assert WeightSpec("int8").block == 32
    assert all(WeightSpec(name).block == PER_CHANNEL for name in FLOAT8_FORMATS)


@pytest.mark.parametrize("name", FLOAT8_FORMATS)
def test_fp8_has_scales_of_all_sizes(name: str) -> None:
    for block in (32, 64, 128, PER_CHANNEL, PER_TENSOR):
        assert WeightSpec(name, block).block == block
    for block in (PER_CHANNEL, PER_TENSOR):
        assert WeightSpec(name, block, power_of_two=True).power_of_two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "int5"}, "Invalid format int5, options:.*Nearest: int"),
        ({"block": 48}, r"Invalid block 48 for format int4, options: \[32, 64, 128, 0\]"),
        ({"block": True}, "Invalid block True"),
        ({"block": PER_TENSOR}, "Invalid block -1 for format int4"),
        ({"format": "int8", "symmetric": False}, "only int4 can be asymmetric"),
        ({"format": "e5m2", "symmetric": False}, "only int4 can be asymmetric"),
        ({"scale_method": "mse"}, "Invalid scale_method mse"),
        ({"power_of_two": True}, "int4 has no power-of-two scales"),
        ({"format": "e4m3fnuz", "block": 32, "power_of_two": True}, "Set block=0 or power_of_two=false"),
    ],
)
def test_what_does_not_go_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeightSpec(**arguments)
