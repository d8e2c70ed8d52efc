# SPDX-License-Identifier: Apache-2.0
"""Log levels, and where log lines go: to stderr, as plain lines, so that stdout holds the text alone."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from poptransformer.config import TopLevel

PACKAGE = "poptransformer"

# What a user waits for is shown at `warning` too: how far a long step has come, and the figures of the run.
REPORTS = f"{PACKAGE}.report"

# PopART's level names -> onnxruntime's severities.
_RUNTIME_SEVERITY = {"trace": 0, "debug": 0, "info": 1, "warn": 2, "err": 3, "critical": 4, "off": 4}
_OFF = logging.CRITICAL + 1


class PlainFormatter(logging.Formatter):
    """The message alone; warnings and errors say what they are."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment, so that lines do not break a progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(PlainFormatter())

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The stream; logging's own handlers keep the one they began with."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line, after what has been printed to stdout so far."""
        if sys.stdout is not None:
            sys.stdout.flush()
        super().emit(record)


def set_up_logging(log_level: str | bool = "warning", popart_log_level: str | bool = "err") -> None:
    """Sets the levels of this package's loggers and of onnxruntime's.

    Lines go to the handlers that the application has set up; where there are none, to stderr. Progress and
    the `Performance:` block are info lines that `warning` shows as well; from `error` on they are hidden.

    Args:
        log_level: `debug`, `info`, `warning`, `error`, `critical` or `off`.
        popart_log_level: `trace`, `debug`, `info`, `warn`, `err`, `critical` or `off`. An unquoted `off` in
            YAML arrives as false, which means the same for both.

    Raises:
        ConfigError: a level is another word.
    """
    TopLevel.check({"log_level": log_level, "popart_log_level": popart_log_level})
    level = _word(log_level)
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(_OFF if level == "off" else level.upper())
    logging.getLogger(REPORTS).setLevel(logging.INFO if level == "warning" else logging.NOTSET)
    if not logging.getLogger().handlers and not logger.handlers:
        logger.addHandler(StderrHandler())

    import onnxruntime  # not needed before; it takes a while

    onnxruntime.set_default_logger_severity(runtime_severity(popart_log_level))


def runtime_severity(popart_log_level: str | bool) -> int:
    """Returns onnxruntime's log level for PopART's word: 0 (everything) to 4 (fatal errors alone)."""
    return _RUNTIME_SEVERITY[_word(popart_log_level)]


def _word(level: str | bool) -> str:
    return "off" if level is False else str(level).lower()
