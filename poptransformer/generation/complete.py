# SPDX-License-Identifier: Apache-2.0
"""Whole answers, by sampling or beam search as each row's settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from poptransformer.generation.params import SamplingParams
from poptransformer.generation.prompts import check_prompts
from poptransformer.generation.runtime import Runtime
from poptransformer.generation.stream import TokenSteps
from poptransformer.generation.text import Detokenizer, RowText, stream_text


def generate_ids(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    stop_token_ids: frozenset[int] = frozenset(),
) -> list[list[int]]:
    """Returns the new ids of each row, the stop token that ends it included.

    Args:
        runtime: runs the model.
        prompts: ids of each row.
        params: settings of each row, with and without beams; stop strings are not looked for.
        stop_token_ids: ids that end a row, unless it has `ignore_eos`.

    Raises:
        ConfigError: see `check_prompts`.
    """
    check_prompts(runtime, prompts, params)
    result: list[list[int]] = [[] for _ in prompts]
    plain, beams = _split(params)
    if plain:
        chosen = [prompts[i] for i in plain], [params[i] for i in plain]
        for step in TokenSteps(runtime, *chosen, stop_token_ids):
            for row, token in zip(plain, step, strict=True):
                if token is not None:
                    result[row].append(token)
    if beams:
        from poptransformer.generation.beams import beam_search  # most answers need none

        found = beam_search(runtime, [prompts[i] for i in beams], [params[i] for i in beams], stop_token_ids)
        for row, hypothesis in zip(beams, found, strict=True):
            result[row] = hypothesis.ids
    return result


def generate_text(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    stop_token_ids: frozenset[int],
    detokenizer: Callable[[], Detokenizer],
) -> list[str]:
    """Returns the new text of each row, cut before its first stop string; see `stream_text`."""
    check_prompts(runtime, prompts, params)
    result = [""] * len(prompts)
    plain, beams = _split(params)
    if plain:
        chosen = [prompts[i] for i in plain], [params[i] for i in plain]
        for step in stream_text(runtime, *chosen, stop_token_ids, detokenizer):
            for row, piece in zip(plain, step, strict=True):
                result[row] += piece or ""
    if beams:
        from poptransformer.generation.beams import beam_search  # most answers need none

        found = beam_search(runtime, [prompts[i] for i in beams], [params[i] for i in beams], stop_token_ids)
        for row, hypothesis in zip(beams, found, strict=True):
            stops = frozenset() if params[row].ignore_eos else stop_token_ids
            text = RowText(detokenizer(), params[row].stop)
            result[row] = "".join(text.put(i) for i in hypothesis.ids if i not in stops) + text.finish()
    return result


def _split(params: Sequence[SamplingParams]) -> tuple[list[int], list[int]]:
    """Rows without and rows with beams."""
    rows = range(len(params))
    return [i for i in rows if params[i].num_beams == 1], [i for i in rows if params[i].num_beams > 1]
