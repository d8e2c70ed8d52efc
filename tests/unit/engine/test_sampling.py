# SPDX-License-Identifier: Apache-2.0
"""Generation settings through the engine: per row, reproducible, and checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from poptransformer.engine import Engine
from poptransformer.errors import ConfigError
from tests.unit.runtime import tiny

TEXTS = ["Hello", "T", "Once upon a"]
IDS = [list(prompt) for prompt in tiny.PROMPTS]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny.engine(tokenizer=True)


def test_the_same_seed_gives_the_same_text_whatever_shares_the_batch(engine: Engine) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.2, "top_p": 0.97, "seed": 42}
    alone = engine.generate(TEXTS[0], **settings)
    assert engine.generate(TEXTS, **settings)[0] == alone
    assert engine.generate(list(reversed(TEXTS)), **settings)[2] == alone
    assert engine.generate([TEXTS[0]] * 3, **settings) == [alone] * 3
    assert "".join(engine.stream(TEXTS[0], **settings)) == alone
    assert engine.generate(TEXTS[0], **settings | {"seed": 43}) != alone


def test_without_a_seed_each_call_and_row_is_new(engine: Engine) -> None:
    settings = {"max_new_tokens": 12, "temperature": 2.0}
    found = [*engine.generate([TEXTS[0]] * 4, **settings), engine.generate(TEXTS[0], **settings)]
    assert len(set(found)) == 5


def test_the_default_is_greedy(engine: Engine) -> None:
    expected = tiny.reference_ids(IDS[0])
    for settings in ({}, {"temperature": 0}, {"top_k": 1, "temperature": 3.0}, {"temperature": None}):
        assert engine.generate(IDS[0], max_new_tokens=12, **settings) == expected


def test_each_row_has_its_own_settings(engine: Engine) -> None:
    settings: dict[str, list[Any]] = {
        "max_new_tokens": [12, 5, 9],
        "temperature": [0.0, 1.4, 0.9],
        "top_k": [0, 7, 0],
        "top_p": [1.0, 1.0, 0.8],
        "min_p": [0.0, 0.02, 0.0],
        "repetition_penalty": [1.3, 1.0, 1.1],
        "seed": [None, 5, 2**62],
        "num_beams": [1, 1, 1],
        "ignore_eos": [False, True, False],
    }
    together = engine.generate(IDS, **settings)
    alone = [engine.generate(IDS[row], **{k: v[row] for k, v in settings.items()}) for row in range(3)]
    assert together == alone
    assert [len(row) for row in together[:2]] == [12, 5]


def test_beams_and_samples_in_one_batch(engine: Engine) -> None:
    together = engine.generate(IDS, max_new_tokens=6, num_beams=[1, 3, 2], length_penalty=[1.0, 2.0, 0.0])
    alone = [
        engine.generate(IDS[0], max_new_tokens=6),
        engine.generate(IDS[1], max_new_tokens=6, num_beams=3, length_penalty=2.0),
        engine.generate(IDS[2], max_new_tokens=6, num_beams=2, length_penalty=0.0),
    ]
    assert together == alone


def test_stop_strings(engine: Engine) -> None:
    text = engine.generate(TEXTS[0], max_new_tokens=20)
    stop = text[7:9]
    cut = text[: text.index(stop)]
    assert engine.generate(TEXTS[0], max_new_tokens=20, stop=stop) == cut
    assert engine.generate(TEXTS[0], max_new_tokens=20, stop=["\x00", stop]) == cut
    assert "".join(engine.stream(TEXTS[0], max_new_tokens=20, stop=stop)) == cut
    both = engine.generate(TEXTS[:2], max_new_tokens=20, stop=[[stop], []])
    assert both == [cut, engine.generate(TEXTS[1], max_new_tokens=20)]


def test_the_end_of_text_ends_a_row(engine: Engine) -> None:
    """The model never says it by itself; here its favourite token is the end."""
    ids = tiny.reference_ids(IDS[0], 12)
    first = ids.index(ids[4])
    compiled = engine.runtime.compiled
    info = dataclasses.replace(compiled.info, stop_token_ids=(ids[4],))
    ended = Engine(dataclasses.replace(compiled, info=info), engine.checkpoint)
    assert ended.generate(IDS[0], max_new_tokens=12) == ids[: first + 1]
    assert ended.generate(IDS[0], max_new_tokens=12, ignore_eos=True) == ids
    text = tiny.byte_tokenizer().decode(ids[:first])
    assert ended.generate(TEXTS[0], max_new_tokens=12) == text
    assert len(ended.generate(TEXTS[0], max_new_tokens=12, ignore_eos=True)) == len(ids)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_new_token": 3}, "Unknown generation setting 'max_new_token'. Nearest: max_new_tokens"),
        ({"max_length": 3}, "Unknown generation setting 'max_length'"),
        ({"topk": 3}, "Unknown generation setting 'topk'. Nearest: top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer from 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": [1, 2]}, "max_new_tokens has 2 values, but there are 3 prompts"),
        ({"temperature": -1}, "temperature must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"top_p": 1.5}, "top_p must be a finite number from 0 to 1"),
        ({"seed": [1, 2]}, "seed has 2 values, but there are 3 prompts"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"stop": ""}, "stop must be strings of at least one character"),
        ({"num_beams": 3, "temperature": 0.7}, "beam search does not draw"),
    ],
)
def test_wrong_settings(engine: Engine, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        engine.generate(IDS, **{"max_new_tokens": 3, **settings})
