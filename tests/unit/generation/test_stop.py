# SPDX-License-Identifier: Apache-2.0
"""Stop strings in text that comes in pieces."""

from __future__ import annotations

import random

import pytest

from poptransformer.generation import StopStringFilter

pytestmark = pytest.mark.unit


def test_text_without_stop_strings_passes():
    stops = StopStringFilter()
    assert stops.push("any") == ("any", False)
    assert stops.flush() == ""


def test_stop_string_over_three_pieces():
    stops = StopStringFilter(["</end>"])
    assert stops.push("Hello <") == ("Hello ", False)
    assert stops.push("/en") == ("", False)
    assert stops.push("d> more") == ("", True)
    assert stops.push("and more") == ("", True)
    assert stops.flush() == ""


def test_what_was_held_back_comes_when_it_goes_on_differently():
    stops = StopStringFilter(["</end>"])
    assert stops.push("1 </e") == ("1 ", False)
    assert stops.push("</e") == ("</e", False)
    assert stops.push("lse>") == ("</else>", False)


def test_flush_returns_the_rest():
    stops = StopStringFilter(["\n\n"])
    assert stops.push("one\n") == ("one", False)
    assert stops.flush() == "\n"
    assert stops.flush() == ""


def test_one_stop_string_inside_another():
    stops = StopStringFilter(["bcd", "c"])
    assert stops.push("abcd") == ("ab", True)
    stops = StopStringFilter(["ab", "abc"])
    assert stops.push("xabc") == ("x", True)


def _expected(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def test_the_cut_into_pieces_does_not_matter():
    choose = random.Random(0)
    stopped = 0
    for _ in range(2000):
        text = "".join(choose.choices("ab\n", k=choose.randint(0, 14)))
        stops = ["".join(choose.choices("ab\n", k=choose.randint(1, 5))) for _ in range(choose.randint(1, 3))]
        cuts = sorted(choose.choices(range(len(text) + 1), k=choose.randint(0, 6)))
        stop_filter, shown, found = StopStringFilter(stops), "", False
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece, found = stop_filter.push(text[start:end])
            shown += piece
            held = text[len(shown) : end]
            assert found or not held or any(stop.startswith(held) for stop in stops), "held back without need"
            if found:
                break
        shown += stop_filter.flush()
        assert (shown, found) == _expected(text, stops)
        stopped += found
    assert 500 < stopped < 1900
