# SPDX-License-Identifier: Apache-2.0
"""Text of rows: detokenized as it comes, ended by stop tokens and stop strings."""

from __future__ import annotations

import codecs

import numpy as np
import pytest

from poptransformer.generation import generate_ids, generate_text, sampling_rows, stream_text
from tests.unit.generation.fake_runtime import FakeRuntime

pytestmark = pytest.mark.unit

EOS = 0


class Bytes:
    """Detokenizer of a vocabulary whose ids are the bytes of UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class Scripted:
    """A runtime that says what it is told to."""

    max_length = 100
    vocab_size = 256
    prompt_marks: tuple[tuple[int, ...], ...] = ()

    def __init__(self, *texts: str | bytes) -> None:
        rows = [text.encode() if isinstance(text, str) else text for text in texts]
        self._rows = np.array([list(row.ljust(100, b"~")) for row in rows], np.int64)
        self.steps = 0

    def start(self, batch, slots):
        return self

    def forward(self, input_ids, lengths, logit_positions):
        self.steps += 1

    def sample(self, logits, history, settings, step):
        return self._rows[np.arange(len(step)), step]


def stream(runtime, count, max_new_tokens=20, **settings):
    rows = sampling_rows(count, max_new_tokens=max_new_tokens, **settings)
    return stream_text(runtime, [[1]] * count, rows, frozenset({EOS}), Bytes)


def joined(steps):
    return ["".join(piece or "" for piece in column) for column in zip(*steps, strict=True)]


def test_stop_token_has_no_text():
    runtime = Scripted(b"one\0", b"three\0")
    pieces = list(stream(runtime, 2))
    assert joined(pieces) == ["one", "three"]
    assert [piece[0] for piece in pieces] == ["o", "n", "e", "", None, None]
    assert runtime.steps == 6


def test_ids_of_each_step():
    steps = stream(Scripted(b"ab\0", b"c\0"), 2)
    assert [list(steps.ids) for _ in steps] == [[97, 99], [98, 0], [0, None]]


def test_ignored_stop_token_has_text():
    assert joined(stream(Scripted(b"a\0b"), 1, 3, ignore_eos=True)) == ["a\0b"]


def test_halves_of_characters_are_held_back():
    pieces = list(stream(Scripted("née 🙂"), 1, 9))
    assert [piece[0] for piece in pieces] == ["n", "", "é", "e", " ", "", "", "", "🙂"]


def test_what_is_held_back_comes_with_the_last_token():
    assert joined(stream(Scripted("é".encode()[:1]), 1, 1)) == ["\ufffd"]
    assert joined(stream(Scripted(b"one STO\0"), 1, stop="STOP")) == ["one STO"]
    assert joined(stream(Scripted("one STOP"), 1, 6, stop="STOP")) == ["one ST"]


def test_stop_string_ends_its_row_at_once():
    runtime = Scripted("one STOP two", "number two")
    steps = stream(runtime, 2, [20, 10], stop="STOP")
    pieces = list(steps)
    assert joined(pieces) == ["one ", "number two"]
    assert len(pieces) == runtime.steps == 10
    assert pieces[7][0] == ""
    assert pieces[8][0] is None
    assert steps.tokens.finish_reasons == ["stop", "length"]
    assert steps.tokens.counts == [8, 10]


def test_each_row_its_own_stop_strings():
    runtime = Scripted("a.b;c", "a.b;c", "a.b;c")
    assert joined(stream(runtime, 3, 5, stop=[".", [";", "b;"], None])) == ["a", "a.", "a.b;c"]


def test_stop_string_in_the_very_last_token():
    steps = stream(Scripted("one."), 1, 4, stop=".")
    assert joined(steps) == ["one"]
    assert steps.tokens.finish_reasons == ["stop"]


def test_stop_string_that_only_the_flush_completes():
    steps = stream(Scripted(b"x" + "é".encode()[:1]), 1, 2, stop="\ufffd")
    assert joined(steps) == ["x"]
    assert steps.tokens.finish_reasons == ["stop"]


def test_whole_texts_equal_streamed_ones():
    settings = {"max_new_tokens": 12, "stop": [["5"], ["31"], []], "temperature": 1.0, "seed": 3}
    prompts, rows = [[3], [4, 5], [6]], sampling_rows(3, **settings)

    class Numbers:
        def put(self, token_id):
            return f"{token_id} "

        def flush(self):
            return "."

    streamed = joined(stream_text(FakeRuntime(), prompts, rows, frozenset(), Numbers))
    assert generate_text(FakeRuntime(), prompts, rows, frozenset(), Numbers) == streamed
    assert streamed[2].endswith(".")
    assert "5" not in streamed[0]


def test_text_of_beams_ends_before_stop_tokens_and_stop_strings():
    class Numbers:
        def put(self, token_id):
            return f"<{token_id}>"

        def flush(self):
            return ""

    prompts = [[3, 1], [4, 5]]
    rows = sampling_rows(2, max_new_tokens=8, num_beams=2)
    ids = generate_ids(FakeRuntime(), prompts, rows)
    texts = generate_text(FakeRuntime(), prompts, rows, frozenset(), Numbers)
    assert texts == ["".join(f"<{i}>" for i in row) for row in ids]
    stop = f"<{ids[0][3]}>"
    stopping = sampling_rows(2, max_new_tokens=8, num_beams=2, stop=stop)
    cut = generate_text(FakeRuntime(), prompts, stopping, frozenset(), Numbers)
    assert cut == [text.split(stop)[0] for text in texts]
    ended = generate_ids(FakeRuntime(), prompts, rows, frozenset({3, 25, 41}))
    texts = generate_text(FakeRuntime(), prompts, rows, frozenset({3, 25, 41}), Numbers)
    assert texts == ["".join(f"<{i}>" for i in row if i not in (3, 25, 41)) for row in ended]
