# SPDX-License-Identifier: Apache-2.0
"""Marks every test by the tier its folder names, so that `pytest -m unit` runs tests/unit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TIERS = {
    "unit": "unit",
    "parity": "parity",
    "golden": "golden",
    "custom_ops": "custom_ops",
    "examples": "examples",
}


def pytest_configure() -> None:
    """Small models gain nothing from more threads, and the kernels' own pool wants the cores."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = TIERS.get(item.path.relative_to(TESTS).parts[0])
        if tier:
            item.add_marker(tier)
