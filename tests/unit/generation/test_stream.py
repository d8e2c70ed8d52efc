# SPDX-License-Identifier: Apache-2.0
"""Steps of generation: who gets a token when, and how often the model runs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from poptransformer.errors import ConfigError
from poptransformer.generation import generate_ids, generate_steps, sampling_rows
from tests.unit.generation.fake_runtime import FakeRuntime

pytestmark = pytest.mark.unit

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7], [40, 41]]
SAMPLED = {
    "temperature": [1.0, 0.7, 1.5, 1.0],
    "top_p": 0.95,
    "seed": [1, 2, 3, 2**40],
    "repetition_penalty": 1.2,
}


def columns(steps):
    return [[token for token in column if token is not None] for column in zip(*steps, strict=True)]


def params(count=4, max_new_tokens=8, **settings):
    return sampling_rows(count, max_new_tokens=max_new_tokens, **settings)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.4}, SAMPLED])
def test_a_row_gives_what_it_gives_alone(settings):
    rows = params(**settings)
    together = generate_ids(FakeRuntime(), PROMPTS, rows)
    alone = [generate_ids(FakeRuntime(), [prompt], [row])[0] for prompt, row in zip(PROMPTS, rows, strict=True)]
    reverse = generate_ids(FakeRuntime(), PROMPTS[::-1], rows[::-1])[::-1]
    assert together == alone == reverse
    assert all(len(ids) == 8 for ids in together)


def test_seeds_decide():
    first, second = (
        generate_ids(FakeRuntime(), PROMPTS * 2, params(8, temperature=1.0, seed=[seed] * 4 + [7] * 4))
        for seed in (1, 2)
    )
    assert first[4:] == second[4:]
    assert first[:4] != second[:4]


def test_one_prefill_then_one_token_per_step():
    runtime = FakeRuntime()
    steps = list(generate_steps(runtime, PROMPTS, params(max_new_tokens=5)))
    assert len(steps) == 5
    assert runtime.calls == [(4, 7)] + [(4, 1)] * 4


def test_stop_token_is_the_last_of_its_row():
    free = generate_ids(FakeRuntime(), PROMPTS, params())
    stops = frozenset({free[0][2], free[3][4]})
    expected = [ids[: next((i + 1 for i, t in enumerate(ids) if t in stops), 8)] for ids in free]
    runtime = FakeRuntime()
    steps = generate_steps(runtime, PROMPTS, params(), stops)
    result = list(steps)
    assert columns(result) == expected
    assert len(expected[0]) <= 3
    assert len(runtime.calls) == len(result) == max(map(len, expected))
    assert steps.counts == [len(ids) for ids in expected]
    assert steps.finish_reasons == ["stop" if ids[-1] in stops else "length" for ids in expected]
    for row, ids in enumerate(expected):
        assert [step[row] for step in result] == ids + [None] * (len(result) - len(ids))


def test_no_step_after_the_last_row_has_ended():
    free = generate_ids(FakeRuntime(), PROMPTS, params())
    runtime = FakeRuntime()
    assert len(list(generate_steps(runtime, PROMPTS, params(), frozenset(ids[0] for ids in free)))) == 1
    assert runtime.calls == [(4, 7)]


def test_ignore_eos_per_row():
    free = generate_ids(FakeRuntime(), PROMPTS, params())
    stops = frozenset(ids[0] for ids in free)
    assert generate_ids(FakeRuntime(), PROMPTS, params(ignore_eos=True), stops) == free
    mixed = generate_ids(FakeRuntime(), PROMPTS, params(ignore_eos=[True, False, True, False]), stops)
    assert mixed == [free[0], free[1][:1], free[2], free[3][:1]]


def test_each_row_its_own_number_of_tokens():
    free = generate_ids(FakeRuntime(), PROMPTS, params())
    short = generate_ids(FakeRuntime(), PROMPTS, params(max_new_tokens=[1, 8, 3, 5]))
    assert short == [free[0][:1], free[1], free[2][:3], free[3][:5]]


def test_rows_stop_at_max_length(caplog):
    free = generate_ids(FakeRuntime(), PROMPTS, params(max_new_tokens=12))
    runtime = FakeRuntime(max_length=10)
    with caplog.at_level(logging.WARNING, logger="poptransformer"):
        steps = generate_steps(runtime, PROMPTS, params(max_new_tokens=12))
    assert "a prompt of 7 tokens leaves 3 of the 12 new tokens asked for: max_length is 10" in caplog.text
    assert columns(steps) == [ids[: 10 - len(prompt)] for ids, prompt in zip(free, PROMPTS, strict=True)]
    assert steps.finish_reasons == ["length"] * 4


def test_a_prompt_that_fills_max_length_gets_no_token():
    free = generate_ids(FakeRuntime(), PROMPTS, params(max_new_tokens=2))
    runtime = FakeRuntime(max_length=7)
    steps = generate_steps(runtime, PROMPTS, params(max_new_tokens=2))
    assert steps.finish_reasons == [None, None, "length", None]
    assert columns(steps) == [free[0], free[1], [], free[3]]
    assert list(generate_steps(FakeRuntime(max_length=7), PROMPTS[2:3], params(1))) == []


def test_the_caller_may_end_a_row():
    free = generate_ids(FakeRuntime(), PROMPTS, params())
    steps = generate_steps(FakeRuntime(), PROMPTS, params())
    result = []
    for step in steps:
        result.append(step)
        if len(result) == 2:
            steps.end(1)
    assert columns(result) == [free[0], free[1][:2], free[2], free[3]]
    assert steps.finish_reasons == ["length", "stop", "length", "length"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "There are no prompts; give at least one"),
        ([[1], []], "Prompt 1 is empty"),
        ([[1], [2] * 49], "Prompt 1 has 49 tokens, but max_length is 48 .* Shorten the prompt"),
        ([[1], [61]], "Prompt 1 has token id 61, but the model's ids go from 0 to 60"),
        ([[-1]], "Prompt 0 has token id -1"),
    ],
)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_bad_prompts_are_refused_before_anything_runs(prompts, message, num_beams):
    runtime = FakeRuntime()
    rows = params(len(prompts), num_beams=num_beams)
    with pytest.raises(ConfigError, match=message):
        generate_ids(runtime, prompts, rows)
    if num_beams == 1:
        with pytest.raises(ConfigError, match=message):
            generate_steps(runtime, prompts, rows)
    assert runtime.calls == []


def test_settings_must_match_the_prompts():
    with pytest.raises(ConfigError, match="There are 4 prompts, but settings for 3"):
        generate_steps(FakeRuntime(), PROMPTS, params(3))


def test_beams_cannot_be_streamed():
    with pytest.raises(ConfigError, match="generate without streaming"):
        generate_steps(FakeRuntime(), PROMPTS, params(num_beams=2))


def test_prompts_may_be_arrays():
    expected = generate_ids(FakeRuntime(), PROMPTS, params())
    prompts = [np.array(prompt, np.int32) for prompt in PROMPTS]
    assert generate_ids(FakeRuntime(), prompts, params()) == expected


def test_rows_with_and_without_beams_share_a_batch():
    plain = generate_ids(FakeRuntime(), PROMPTS, params())
    beams = generate_ids(FakeRuntime(), PROMPTS, params(num_beams=3))
    mixed = generate_ids(FakeRuntime(), PROMPTS, params(num_beams=[1, 3, 1, 3]))
    assert mixed == [plain[0], beams[1], plain[2], beams[3]]
    assert plain != beams
