# SPDX-License-Identifier: Apache-2.0
"""What a run prints, and where to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from poptransformer.sessions import Performance
from poptransformer.utils import log_performance, print_stream, print_texts

STEPS = [["Once", "The "], [" upon", "end"], [" a", ""], [" time", ""]]


def test_one_row_continues_its_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    print_stream([[" a"], [" b"]], {"input_string_list": ["Say"], "chat": False})
    assert capsys.readouterr().out == "Say a b\n"


def test_a_chat_answers_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_stream([["Hel"], ["lo"]], {"input_string_list": ["Hi"], "chat": True})
    assert capsys.readouterr().out == "> Hi\nHello\n"


@pytest.mark.parametrize("use_history", [False, True])
def test_a_question_is_a_chat(use_history: bool, capsys: pytest.CaptureFixture[str]) -> None:
    print_stream([["Hel"], ["lo"]], {"input_string": "Hi", "use_history": use_history})
    assert capsys.readouterr().out == "> Hi\nHello\n"


def test_rows_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    texts = print_stream(STEPS, {"input_string_list": ["A: ", "B: ", "dropped by truncation"]})
    assert texts == ["Once upon a time", "The end"]
    assert capsys.readouterr().out == "[1/2] A: Once upon a time\n[2/2] B: The end\n"


def test_the_first_row_appears_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def steps() -> Iterator[list[str]]:
        for pieces in STEPS:
            yield pieces
            seen.append(capsys.readouterr().out)

    print_stream(steps())
    assert seen == ["[1/2] Once", " upon", " a", " time"]


@pytest.mark.parametrize("inputs", [None, {}, {"my_input": 3}, {"input_string_list": ["A", "B"], "chat": True}])
def test_streamed_and_finished_rows_look_alike(inputs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    texts = print_stream(STEPS, inputs)
    streamed = capsys.readouterr().out
    print_texts(texts, inputs)
    assert capsys.readouterr().out == streamed


def test_nothing_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_stream([]) == []
    assert capsys.readouterr().out == ""


def test_an_interrupted_line_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    def steps() -> Iterator[list[str]]:
        yield ["half"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        print_stream(steps())
    assert capsys.readouterr().out == "half\n"


def test_performance(caplog: pytest.LogCaptureFixture) -> None:
    measured = Performance(
        batch_size=2,
        precision="fp16",
        max_length=264,
        prompt_tokens=9,
        new_tokens=30,
        decode_step=20,
        latency_ms=500.0,
    )
    with caplog.at_level(logging.INFO, logger="poptransformer"):
        log_performance(measured)
    assert caplog.messages == [
        "Performance:",
        "batch size: 2, precision: fp16",
        "max_length: 264, decode_step: 20",
        "Latency per token: 25.000 ms/token",
        "Throughput: 60.000 token/s, Total Latency: 500.000 ms",
    ]
