# SPDX-License-Identifier: Apache-2.0
"""Statistics of a comparison."""

from __future__ import annotations

import pytest

from bench.summary import MEMORY, Key, agreement, best, figures, ratio, wait_share
from tests.unit.bench.comparison import SMOLLM2, comparison, run

OURS = Key(SMOLLM2, "poptransformer", "int4", 4)
LLAMA = Key(SMOLLM2, "llama-cpp-python", "q4_0", 4)
GENAI = Key(SMOLLM2, "onnxruntime-genai", "int4", 4)
HF = Key(SMOLLM2, "transformers", "fp32", 32)


def test_medians_are_over_all_repetitions() -> None:
    found = figures(comparison()["runs"])
    assert found[OURS]["decode"].values == [400, 408, 200, 204]
    assert found[OURS]["decode"].median == 302
    assert set(found) == {OURS, LLAMA, GENAI, HF}


def test_memory_is_that_of_decoding() -> None:
    found = figures(comparison()["runs"])
    assert found[LLAMA][MEMORY].median == 250
    assert MEMORY not in figures([run("poptransformer", "int4", "cold", 0, [1.0])])[OURS]


def test_a_ratio_is_of_the_same_round() -> None:
    found = ratio(figures(comparison()["runs"]), "decode", OURS, LLAMA)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((2.02, 2.02, 2.02))


def test_rounds_that_one_side_lacks_do_not_count() -> None:
    runs = [
        run("poptransformer", "int4", "decode", 0, [100.0]),
        run("poptransformer", "int4", "decode", 1, [300.0]),
        run("poptransformer", "int4", "decode", 2, [500.0]),
        run("llama-cpp-python", "q4_0", "decode", 1, [100.0]),
        run("llama-cpp-python", "q4_0", "decode", 2, [100.0]),
    ]
    found = ratio(figures(runs), "decode", OURS, LLAMA)
    assert found is not None
    assert (found.value, found.low, found.high) == (4, 3, 5)
    assert ratio(figures(runs), "prefill", OURS, LLAMA) is None
    apart = [run("poptransformer", "int4", "decode", 0, [1.0]), run("llama-cpp-python", "q4_0", "decode", 1, [1.0])]
    assert ratio(figures(apart), "decode", OURS, LLAMA) is None


@pytest.mark.parametrize(
    ("metric", "bits", "ours", "expected"),
    [
        ("decode", 4, False, LLAMA),
        ("decode", None, False, LLAMA),
        ("decode", 32, False, HF),
        ("decode", 16, False, None),
        ("decode", None, True, OURS),
        (MEMORY, None, False, GENAI),  # 200 MB, the least
        ("cold", 4, False, LLAMA),
        ("prefill", 4, False, None),
    ],
)
def test_the_best(metric: str, bits: int | None, ours: bool, expected: Key | None) -> None:
    assert best(figures(comparison()["runs"]), metric, SMOLLM2, bits, ours=ours) == expected


def test_the_best_of_another_model() -> None:
    assert best(figures(comparison()["runs"]), "decode", "gpt2-124m", None, ours=False) is None


def test_tokens_are_compared_with_the_reference() -> None:
    runs = comparison()["runs"]
    assert agreement(runs, SMOLLM2) == {
        ("poptransformer", "int4"): (2, 3),
        ("llama-cpp-python", "q4_0"): (3, 3),
        ("onnxruntime-genai", "int4"): (0, 3),
        ("transformers", "fp32"): (3, 3),
    }
    assert agreement([found for found in runs if found["engine"] != "transformers"], SMOLLM2) == {}


def test_waiting() -> None:
    assert wait_share([{"waits": [0.1, 0.3]}, {"waits": [0.2]}, {}]) == 0.2
    assert wait_share([{}]) == 0
