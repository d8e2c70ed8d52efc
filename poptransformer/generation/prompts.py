# SPDX-License-Identifier: Apache-2.0
"""Checks on prompts, and their way into a right-padded batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.generation.params import SamplingParams
from poptransformer.generation.runtime import Runtime

logger = logging.getLogger(__name__)


def check_prompts(
    runtime: Runtime, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams] | None = None
) -> None:
    """Checks a batch.

    Raises:
        ConfigError: no prompts, an empty or too long prompt, a token id that the model does not have or one that is
            missing, or another number of params than of prompts.
    """
    if len(prompts) == 0:
        raise ConfigError("There are no prompts; give at least one.")
    if params is not None and len(params) != len(prompts):
        raise ConfigError(
            f"There are {len(prompts)} prompts, but settings for {len(params)}. Give one for each prompt."
        )
    for row, prompt in enumerate(prompts):
        _check_prompt(runtime, row, prompt)


def row_limits(runtime: Runtime, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[int]:
    """Returns how many tokens each row may generate.

    That is `max_new_tokens`, or less where the row reaches `runtime.max_length` before; 0 for a prompt that
    fills it.
    """
    limits = []
    for prompt, settings in zip(prompts, params, strict=True):
        room = runtime.max_length - len(prompt)
        if room < settings.max_new_tokens:
            logger.warning(
                "a prompt of %d tokens leaves %d of the %d new tokens asked for: max_length is %d",
                *(len(prompt), room, settings.max_new_tokens, runtime.max_length),
            )
        limits.append(min(room, settings.max_new_tokens))
    return limits


def _check_prompt(runtime: Runtime, row: int, prompt: Sequence[int]) -> None:
    if len(prompt) == 0:
        raise ConfigError(f"Prompt {row} is empty; a prompt must have at least one token.")
    if len(prompt) > runtime.max_length:
        raise ConfigError(
            f"Prompt {row} has {len(prompt)} tokens, but max_length is {runtime.max_length} for prompt and "
            "answer together. Shorten the prompt, or load the model with a larger max_length."
        )
    lowest, highest = min(prompt), max(prompt)
    if lowest < 0 or highest >= runtime.vocab_size:
        raise ConfigError(
            f"Prompt {row} has token id {lowest if lowest < 0 else highest}, but the model's ids go from 0 "
            f"to {runtime.vocab_size - 1}. Use the tokenizer of this checkpoint."
        )
    for marks in runtime.prompt_marks:
        if not set(marks).intersection(prompt):
            raise ConfigError(
                f"Prompt {row} has no token {' or '.join(map(str, marks))}, which the model needs to tell prompt and "
                "answer apart. The checkpoint's tokenizer adds it: encode with add_special_tokens=True."
            )


def right_padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids int64 `[B, L]`, lengths int64 `[B]` and the last position of each row int64 `[B, 1]`."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    ids = np.zeros((len(prompts), max(1, int(lengths.max()))), np.int64)
    for target, prompt in zip(ids, prompts, strict=True):
        target[: len(prompt)] = prompt
    return ids, lengths, np.maximum(lengths - 1, 0)[:, None]
