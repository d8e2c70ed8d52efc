# SPDX-License-Identifier: Apache-2.0
"""Tables of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bars import BARS
from bench.catalog import ENGINES, MODELS, OURS
from bench.limits import Limits, summarize
from bench.models import flops_per_token
from bench.report import bar_table, markdown, number
from bench.summary import METRICS, figures
from tests.unit.bench.comparison import comparison, run


def line(text: str, beginning: str) -> list[str]:
    """The cells of the one table row that begins so."""
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {beginning} ")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_models_table() -> None:
    text = markdown(comparison())
    # 302 tok/s of 80 MB are 24.2 GB/s, 60% of what four streams read.
    assert line(text, "**poptransformer int4**")[1:] == ["4", "302", "0.6", "200", "80", "60%", "-", "2/3"]
    assert line(text, "onnxruntime-genai int4")[1:] == ["4", "112", "-", "200", "80", "22%", "-", "0/3"]
    assert line(text, "transformers fp32")[-3:] == ["19%", "-", "3/3"]


def test_ratios_and_bars() -> None:
    text = markdown(comparison())
    ratios = line(text, "poptransformer int4")
    assert ratios[1:] == [
        "2.02 (llama-cpp-python q4_0)",
        "0.80 (llama-cpp-python q4_0)",
        "1.00 (onnxruntime-genai int4)",
    ]
    assert line(text, "smollm2-135m decode tok/s")[-3:] == ["2.02 (2.02 to 2.02)", "at least 1.9", "ok"]
    assert line(text, "smollm2-135m cold first token s")[-2:] == ["at most 1.0", "ok"]


def test_a_missed_bar() -> None:
    results = comparison()
    for found in results["runs"]:
        if found["engine"] == "llama-cpp-python":
            found["values"] = [value * 1.5 if found["set"] == "decode" else value / 2 for value in found["values"]]
    text = markdown(results)
    assert line(text, "smollm2-135m decode tok/s")[-1] == "MISSED"
    assert line(text, "smollm2-135m cold first token s")[-1] == "MISSED"


def test_conditions_and_limits() -> None:
    text = markdown(comparison())
    assert "a processor, 2 cores, load 0.1; Python 3.11" in text
    assert "2 threads, 2 rounds" in text
    assert "at most 2% of the model's files" in text
    assert line(text, "memory read, 4 streams per thread") == ["memory read, 4 streams per thread", "40.0 GB/s"]
    assert "transformers 1.0" in text


def test_without_limits() -> None:
    text = markdown({**comparison(), "limits": []})
    assert "make limits" in text
    assert line(text, "**poptransformer int4**")[-3:] == ["-", "-", "2/3"]


def test_nothing_of_ours() -> None:
    results = comparison()
    results["runs"] = [found for found in results["runs"] if found["engine"] != OURS]
    text = markdown(results)
    assert "## Bars" not in text
    assert "ours / best" not in text


def test_the_large_models_share_of_the_bandwidth() -> None:
    runs = [run("poptransformer", "int4", "decode", 0, [50.0], "llama-1.1b", weight_bytes=700_000_000)]
    text = bar_table(figures(runs), runs, Limits({1: 30.0, 4: 40.0, 8: 50.0}, 200.0, 800.0))
    cells = line(text, "llama-1.1b decode, share of the bandwidth of 4 streams")
    assert cells[1:] == ["35.0 GB/s (poptransformer int4)", "40.0 GB/s (limit)", "0.88", "at least 0.8", "ok"]


def test_limits_are_medians() -> None:
    def measured(rate: float) -> dict[str, Any]:
        found = {"read_gb_s": {"1": rate, "4": 2 * rate}, "fma_gflop_s": 10 * rate, "int8_gop_s": 40 * rate}
        return {"threads": {"1": found, "2": found}}

    assert summarize([measured(10), measured(30), measured(20)], 2) == Limits({1: 20, 4: 40}, 200, 800)
    assert Limits({1: 20, 4: 40}, 200, 800).read == 40
    assert summarize([], 2) is None


@pytest.mark.parametrize(("value", "text"), [(0.4321, "0.432"), (7.0, "7"), (33.333, "33.3"), (1234.5, "1234")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_operations_of_a_token() -> None:
    layers, head = flops_per_token("smollm2-135m")
    assert head == 2 * 49152 * 576
    assert layers == 2 * 30 * (576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536)


def test_every_bar_names_what_is_measured() -> None:
    variants = {variant.name: variant for variant in ENGINES[OURS].variants}
    for bar in BARS:
        assert bar.model in MODELS
        assert bar.metric in METRICS
        assert bar.variant is None or (bar.model in variants[bar.variant].models and bar.variant in variants)
        assert bar.variant is None or variants[bar.variant].bits == bar.bits
