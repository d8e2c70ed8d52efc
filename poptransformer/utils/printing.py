# SPDX-License-Identifier: Apache-2.0
"""What a run prints: the text to stdout, the `Performance:` block to the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

logger = logging.getLogger("poptransformer.report.performance")


def print_stream(steps: Iterable[Sequence[str]], inputs: Mapping[str, Any] | None = None) -> list[str]:
    """Prints rows of text while they are generated.

    The first row appears piece by piece. Rows of a batch advance together, and mixing them would make none
    readable, so the others follow whole when all have ended.

    Args:
        steps: one list of pieces per step, one piece (or '') per row, as `session.stream` yields them.
        inputs: the `inputs` group, for the prompts.

    Returns:
        The text of each row.
    """
    rows: list[list[str]] = []
    try:
        for pieces in steps:
            if not rows:
                rows = [[] for _ in pieces]
                _write(_heading(0, len(rows), inputs))
            for row, piece in zip(rows, pieces, strict=True):
                row.append(piece)
            _write(pieces[0])
    finally:
        if rows:
            _write("\n")
    texts = ["".join(row) for row in rows]
    for index, text in enumerate(texts[1:], 1):
        _write(_heading(index, len(texts), inputs) + text + "\n")
    return texts


def print_texts(texts: Sequence[str], inputs: Mapping[str, Any] | None = None) -> None:
    """Prints rows of finished text, in the form that `print_stream` gives them.

    Args:
        texts: the text of each row, without its prompt.
        inputs: the `inputs` group, for the prompts.
    """
    for index, text in enumerate(texts):
        _write(_heading(index, len(texts), inputs) + text + "\n")


def log_performance(performance: Any) -> None:
    """Logs the `Performance:` block, at info level; `log_level: warning` shows it too.

    Args:
        performance: what `session.performance()` returns: times in ms, and throughput in tokens per second
            over all rows, of the tokens that were really generated.
    """
    lines = (
        "Performance:",
        f"batch size: {performance.batch_size}, precision: {performance.precision}",
        f"max_length: {performance.max_length}, decode_step: {performance.decode_step}",
        f"Latency per token: {performance.latency_per_token_ms:.3f} ms/token",
        f"Throughput: {performance.throughput:.3f} token/s, Total Latency: {performance.latency_ms:.3f} ms",
    )
    for line in lines:
        logger.info(line)


def _heading(index: int, rows: int, inputs: Mapping[str, Any] | None) -> str:
    """What stands before a row's text: its number where there are several, and its prompt."""
    number = f"[{index + 1}/{rows}] " if rows > 1 else ""
    given = inputs or {}
    question = given.get("input_string")
    prompts = given.get("input_string_list") or ([question] if isinstance(question, str) else [])
    prompt = prompts[index] if index < len(prompts) else ""
    if prompt and (given.get("chat") or question):
        return f"{number}> {prompt}\n"
    return number + prompt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
