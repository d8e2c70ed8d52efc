# SPDX-License-Identifier: Apache-2.0
"""`run` is a command: it sets up logging for its process. Here it shares the process with other tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

LOGGERS = [logging.getLogger(name) for name in ("poptransformer", "poptransformer.report")]


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    before = [(logger.level, list(logger.handlers)) for logger in LOGGERS]
    yield
    for logger, (level, handlers) in zip(LOGGERS, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers
