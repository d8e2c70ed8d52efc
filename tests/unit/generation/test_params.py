# SPDX-License-Identifier: Apache-2.0
"""Settings of a row: defaults, checks, arrays and spreading over a batch."""

from __future__ import annotations

import numpy as np
import pytest

from poptransformer.errors import ConfigError
from poptransformer.generation import SamplingParams, arrays, sampling_rows

pytestmark = pytest.mark.unit


def test_default_is_greedy():
    assert SamplingParams(max_new_tokens=3).greedy
    assert sampling_rows(1, max_new_tokens=3)[0] == SamplingParams(max_new_tokens=3)


@pytest.mark.parametrize("given", [{"temperature": 0.7}, {"temperature": 1.0}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_whoever_sets_a_temperature_samples(given):
    (row,) = sampling_rows(1, max_new_tokens=3, **given)
    assert row.top_k == 0
    assert not row.greedy
    (row,) = sampling_rows(1, max_new_tokens=3, top_k=5, **given)
    assert row.top_k == 5


def test_what_is_none_was_not_given():
    nothing = dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "stop", "seed", "num_beams"))
    (row,) = sampling_rows(1, max_new_tokens=3, **nothing)
    assert row == SamplingParams(max_new_tokens=3)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9])
def test_a_temperature_of_nothing_is_greedy(temperature):
    (row,) = sampling_rows(1, max_new_tokens=3, temperature=temperature)
    assert row.greedy
    assert arrays([row]).temperature[0] == 0


def test_each_row_its_own():
    rows = sampling_rows(
        3,
        max_new_tokens=[1, 2, 3],
        temperature=np.array([0.5, 0.0, 1.5]),
        seed=[1, None, 2**63 - 1],
        top_p=0.9,
    )
    assert [row.max_new_tokens for row in rows] == [1, 2, 3]
    assert [row.greedy for row in rows] == [False, True, False]
    settings = arrays(rows)
    assert settings.seed[[0, 2]].tolist() == [1, 2**63 - 1]
    np.testing.assert_array_equal(settings.temperature, np.float32([0.5, 0, 1.5]))
    np.testing.assert_array_equal(settings.top_p, np.float32([0.9, 0.9, 0.9]))


def test_a_row_without_temperature_among_rows_with_one_is_greedy():
    rows = sampling_rows(2, max_new_tokens=1, temperature=[None, 0.8])
    assert [row.greedy for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("end", [("end",), ("end",)]),
        (["a", "b"], [("a", "b"), ("a", "b")]),
        (("a", "b", "c"), [("a", "b", "c"), ("a", "b", "c")]),
        ([["a"], ["b", "c"]], [("a",), ("b", "c")]),
        ([None, "x"], [(), ("x",)]),
        ([], [(), ()]),
    ],
)
def test_stop_strings_for_all_rows_or_each(stop, expected):
    assert [row.stop for row in sampling_rows(2, max_new_tokens=1, stop=stop)] == expected


def test_arrays_have_the_types_of_the_op():
    settings = arrays([SamplingParams(4, temperature=0.5, top_k=3, seed=7), SamplingParams(4)])
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        assert getattr(settings, name).dtype == np.float32
    for name in ("top_k", "seed"):
        assert getattr(settings, name).dtype == np.int64
    assert settings.seed[0] == 7


def test_rows_without_a_seed_get_new_ones():
    first, second = (arrays([SamplingParams(1)] * 50).seed for _ in range(2))
    assert len({*first.tolist(), *second.tolist()}) == 100
    assert first.min() >= 0
    assert first.max() > 2**56


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens must be an integer from 1"),
        ("max_new_tokens", 2.5, "found 2.5"),
        ("max_new_tokens", True, "found True"),
        ("temperature", -1, "temperature must be a finite number of at least 0, found -1"),
        ("temperature", float("nan"), "found nan"),
        ("temperature", "hot", "found 'hot'"),
        ("top_k", -1, "top_k must be an integer from 0"),
        ("top_p", 1.5, "top_p must be a finite number from 0 to 1, found 1.5"),
        ("min_p", -0.1, "min_p must be a finite number from 0 to 1"),
        ("repetition_penalty", 0, "repetition_penalty must be"),
        ("seed", -1, "seed must be an integer from 0"),
        ("seed", 2**63, "seed must be an integer from 0"),
        ("num_beams", 0, "num_beams must be an integer from 1"),
        ("length_penalty", float("inf"), "length_penalty must be a finite number, found inf"),
        ("early_stopping", "always", "Invalid early_stopping 'always', options"),
        ("early_stopping", 1, "Invalid early_stopping 1"),
        ("stop", "", "stop must be strings of at least one character"),
        ("stop", [3, 4], "stop must be strings"),
        ("ignore_eos", "yes", "ignore_eos must be true or false, found 'yes'"),
    ],
)
def test_bad_values_are_named(setting, value, message):
    with pytest.raises(ConfigError, match=message):
        sampling_rows(2, **{"max_new_tokens": 3, setting: value})


def test_misspelt_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown generation setting 'topk'. Nearest: top_k"):
        sampling_rows(1, max_new_tokens=3, topk=4)


def test_missing_length():
    with pytest.raises(ConfigError, match="max_new_tokens is missing"):
        sampling_rows(1, temperature=1.0)


def test_list_of_the_wrong_length():
    with pytest.raises(ConfigError, match="top_k has 3 values, but there are 2 prompts"):
        sampling_rows(2, max_new_tokens=3, top_k=[1, 2, 3])


def test_beams_do_not_draw():
    with pytest.raises(ConfigError, match="num_beams is 4, but beam search does not draw"):
        sampling_rows(1, max_new_tokens=3, num_beams=4, temperature=0.7)
    assert sampling_rows(1, max_new_tokens=3, num_beams=4, temperature=0)[0].num_beams == 4
