# SPDX-License-Identifier: Apache-2.0
"""Marks every test by the tier its folder names, so that `pytest -m unit` runs tests/unit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LOGGERS = [logging.getLogger(name) for name in ("poptransformer", "poptransformer.layers", "poptransformer.report")]
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


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    """Commands set up logging for their process. Here it is shared with the other tests."""
    before = [(logger.level, list(logger.handlers)) for logger in LOGGERS]
    yield
    for logger, (level, handlers) in zip(LOGGERS, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = TIERS.get(item.path.relative_to(TESTS).parts[0])
        if tier:
            item.add_marker(tier)
