# SPDX-License-Identifier: Apache-2.0
"""A comparison as markdown: limits of the machine, one table per model, ratios to the best peers, the bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.bars import BARS, LLAMA_READ_SHARE, LLAMA_STREAMS, Bar
from bench.catalog import LLAMA, MODELS, OURS, SETS
from bench.limits import Limits, summarize
from bench.models import flops_per_token
from bench.runner import describe, table
from bench.summary import (
    LOWER_IS_BETTER,
    METRICS,
    Figure,
    Figures,
    Key,
    Ratio,
    agreement,
    best,
    figures,
    ratio,
    wait_share,
)

NONE = "-"


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report."""
    runs = results["runs"]
    found = figures(runs)
    limits = summarize(results["limits"], results["threads"])
    parts = ["# Comparison", conditions(results)]
    parts.append(limits_table(limits) if limits else "The limits of the machine were not measured (`make limits`).")
    for model in (name for name in MODELS if any(key.model == name for key in found)):
        parts += [f"## {model}", model_table(runs, found, limits, model)]
        ratios = ratio_table(found, model)
        parts += [ratios] if ratios else []
    bars = bar_table(found, runs, limits)
    parts += ["## Bars", bars] if bars else []
    parts.append("Versions: " + "; ".join(versions(runs)) + ".")
    return "\n\n".join(parts) + "\n"


def conditions(results: Mapping[str, Any]) -> str:
    """On what machine, how often, and how well that went."""
    runs = results["runs"]
    rounds = len({run["round"] for run in runs})
    cached = max((run.get("still_cached", 0.0) for run in runs), default=0.0)
    return (
        f"{describe(results['machine'])}. {results['threads']} threads, {rounds} round{'s' * (rounds != 1)}, medians "
        f"over all repetitions. Measured threads waited for a core {100 * wait_share(runs):.0f}% of the time; cold "
        f"starts found at most {100 * cached:.0f}% of the model's files in memory."
    )


def versions(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each engine with its version."""
    return sorted({f"{run['engine']} {run['version']}" for run in runs})


def limits_table(limits: Limits) -> str:
    """Bandwidth by the number of streams, and peaks of arithmetic."""
    rows = [
        [f"memory read, {streams} streams per thread", f"{rate:.1f} GB/s"] for streams, rate in limits.streams.items()
    ]
    rows += [["fp32 multiply-adds", f"{limits.fma:.0f} GFLOP/s"], ["int8 multiply-adds", f"{limits.int8:.0f} GOP/s"]]
    return table(["limit", "measured"], rows)


# ---- one model -------------------------------------------------------------------------------------------------------


def model_table(runs: Sequence[Mapping[str, Any]], found: Figures, limits: Limits | None, model: str) -> str:
    """All engines, sorted by the bits of their weights; shares of the limits beside the speeds that they bound."""
    weight_bytes = {(run["engine"], run["variant"]): run["weight_bytes"] for run in runs if run["model"] == model}
    same = agreement(runs, model)
    names = [name for name in METRICS if any(name in row for key, row in found.items() if key.model == model)]
    header = [
        "engine",
        "bits",
        *(METRICS[name] for name in names),
        "MB/token",
        "of read limit",
        "of fp32 peak",
        "tokens",
    ]
    rows = []
    for key in sorted((key for key in found if key.model == model), key=lambda key: (key.bits, key.engine != OURS)):
        size = weight_bytes[key.engine, key.variant]
        rows.append(
            [
                f"**{key.title}**" if key.engine == OURS else key.title,
                str(key.bits),
                *(_cell(found[key].get(name)) for name in names),
                f"{size / 1e6:.0f}",
                read_share(found[key].get("decode"), size, limits),
                fma_share(found[key].get("prefill"), model, limits),
                "/".join(map(str, same.get((key.engine, key.variant), ()))) or NONE,
            ]
        )
    return table(header, rows)


def _cell(figure: Figure | None) -> str:
    return NONE if figure is None else number(figure.median)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def read_share(decode: Figure | None, weight_bytes: int, limits: Limits | None) -> str:
    """Bytes of weights read per second in decoding, as a share of the bandwidth."""
    if decode is None or limits is None:
        return NONE
    return f"{100 * decode.median * weight_bytes / 1e9 / limits.read:.0f}%"


def fma_share(prefill: Figure | None, model: str, limits: Limits | None) -> str:
    """Floating-point operations per second of the prefill, as a share of the fp32 peak: int8 products may exceed it."""
    if prefill is None or limits is None:
        return NONE
    layers, head = flops_per_token(model)
    return f"{100 * prefill.median * (layers + head / SETS['prefill'].prompt) / 1e9 / limits.fma:.0f}%"


# ---- ratios and bars -----------------------------------------------------------------------------------------------


def ratio_table(found: Figures, model: str) -> str:
    """Ours over the best peer whose weights have as many bits; empty where there is nothing to compare."""
    rows = []
    names = [name for name in METRICS if any(name in row for key, row in found.items() if key.model == model)]
    for mine in (key for key in found if key.model == model and key.engine == OURS):
        peers = {name: best(found, name, model, mine.bits, ours=False) for name in names}
        cells = [_ratio_cell(ratio(found, name, mine, peer) if peer else None) for name, peer in peers.items()]
        if any(cell != NONE for cell in cells):
            rows.append([mine.title, *cells])
    return table(["ours / best peer of as many bits", *(METRICS[name] for name in names)], rows) if rows else ""


def _ratio_cell(found: Ratio | None) -> str:
    return NONE if found is None else f"{found.value:.2f} ({found.peer.title})"


def bar_table(found: Figures, runs: Sequence[Mapping[str, Any]], limits: Limits | None) -> str:
    """Every bar whose two sides were measured, with a verdict."""
    rows = [row for bar in BARS if (row := _bar_row(found, bar))]
    rows += _read_share_row(found, runs, limits)
    return table(["bar", "ours", "best peer", "ratio (lowest to highest round)", "to reach", ""], rows) if rows else ""


def _bar_row(found: Figures, bar: Bar) -> list[str] | None:
    mine = (
        best(found, bar.metric, bar.model, None, ours=True)
        if bar.variant is None
        else next((k for k in found if (k.model, k.engine, k.variant) == (bar.model, OURS, bar.variant)), None)
    )
    peer = best(found, bar.metric, bar.model, bar.bits, ours=False)
    measured = ratio(found, bar.metric, mine, peer) if mine and peer else None
    if measured is None:
        return None
    lower = bar.metric in LOWER_IS_BETTER
    kept = measured.value <= bar.factor if lower else measured.value >= bar.factor
    return [
        f"{bar.model} {METRICS[bar.metric]}",
        *(f"{number(found[key][bar.metric].median)} ({key.title})" for key in (measured.mine, measured.peer)),
        f"{measured.value:.2f} ({measured.low:.2f} to {measured.high:.2f})",
        f"{'at most' if lower else 'at least'} {bar.factor}",
        "ok" if kept else "MISSED",
    ]


def _read_share_row(found: Figures, runs: Sequence[Mapping[str, Any]], limits: Limits | None) -> list[list[str]]:
    key = Key(LLAMA, OURS, "int4", 4)
    decode = found.get(key, {}).get("decode")
    if decode is None or limits is None or LLAMA_STREAMS not in limits.streams:
        return []
    run = next(run for run in runs if (run["model"], run["engine"], run["variant"]) == (LLAMA, OURS, "int4"))
    rate, limit = decode.median * run["weight_bytes"] / 1e9, limits.streams[LLAMA_STREAMS]
    verdict = "ok" if rate / limit >= LLAMA_READ_SHARE else "MISSED"
    what = f"{LLAMA} decode, share of the bandwidth of {LLAMA_STREAMS} streams"
    cells = [f"{rate:.1f} GB/s ({key.title})", f"{limit:.1f} GB/s (limit)", f"{rate / limit:.2f}"]
    return [[what, *cells, f"at least {LLAMA_READ_SHARE}", verdict]]
