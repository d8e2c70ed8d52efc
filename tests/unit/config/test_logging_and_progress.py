# SPDX-License-Identifier: Apache-2.0
"""Log lines go to stderr; progress is a bar on a terminal and a line now and then elsewhere."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from poptransformer.errors import ConfigError
from poptransformer.utils import progress as progress_module
from poptransformer.utils.logging import StderrHandler, set_up_logging
from poptransformer.utils.progress import progress

logger = logging.getLogger("poptransformer")


def forget_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that has not set up logging; pytest has."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger.handlers = []


def test_plain_lines_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forget_handlers(monkeypatch)
    set_up_logging("info")
    set_up_logging("info")  # a second time adds no second handler
    logger.info("compiling")
    logger.debug("not shown")
    logger.warning("no library")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "compiling\nwarning: no library\n")


def test_the_applications_handlers_are_left_alone() -> None:
    logger.handlers = []
    set_up_logging("info")
    assert logger.handlers == []


def test_unknown_level() -> None:
    with pytest.raises(ConfigError, match=r"Invalid popart_log_level warnn, options: \[.*\]\. Nearest: warn"):
        set_up_logging("info", "warnn")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    logger.setLevel(logging.INFO)
    with progress("loading", total=4) as advance:
        advance(3)
        assert isinstance(sys.stderr, Terminal) is False  # lines go through the bar meanwhile
    assert "loading" in terminal.getvalue()
    assert "3/4" in terminal.getvalue()
    assert sys.stderr is terminal


def test_log_lines_during_a_bar_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_handlers(monkeypatch)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    logger.addHandler(StderrHandler())
    logger.setLevel(logging.INFO)
    with progress("compiling"):
        logger.info("block 3 placed on IPU 1")
    assert "block 3 placed on IPU 1\n" in terminal.getvalue()


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_quiet_and_dumb_terminals_get_no_bar(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", term)
    logger.setLevel(logging.INFO if term == "dumb" else logging.WARNING)
    with progress("loading", total=4) as advance:
        advance(4)
    assert terminal.getvalue() == ""


def test_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = iter([0.0, 5.0, 12.0, 12.0, 15.0, 16.0, 17.5])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO, logger="poptransformer"), progress("loading", total=4) as advance:
        for _ in range(4):
            advance(1)
    assert caplog.messages == ["loading: 2 of 4 after 12.0 s", "loading: 4 of 4 after 17.5 s"]


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("warning", True), ("error", False), ("off", False)])
def test_reports_are_shown_at_warning_too(level: str, shown: bool, caplog: pytest.LogCaptureFixture) -> None:
    set_up_logging(level)
    with progress("compiling"):
        logger.info("a line of no interest")
    assert ("compiling: after 0.0 s" in caplog.messages) is shown
    assert ("a line of no interest" in caplog.messages) is (level == "debug")


def test_a_library_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with progress("compiling"):
        pass
    assert caplog.messages == []


def test_the_blocks_error_comes_out() -> None:
    with pytest.raises(KeyError), progress("loading", total=1):
        raise KeyError("x")
