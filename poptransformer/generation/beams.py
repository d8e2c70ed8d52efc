# SPDX-License-Identifier: Apache-2.0
"""Beam search, with the results of transformers' `generate(num_beams=k, do_sample=False)`.

Each prompt is a search of its own and equals what it gives alone; the searches share the model's steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from poptransformer.errors import LogitsError
from poptransformer.generation.params import SamplingParams
from poptransformer.generation.prompts import check_prompts, right_padded, row_limits
from poptransformer.generation.runtime import Runtime

# Keeps all beams but the first out of the first step, where they are still alike.
_NEVER = np.float32(-1e9)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A finished answer.

    Attributes:
        ids: the new tokens, the stop token included.
        score: sum of the tokens' log probabilities, divided by `len(ids) ** length_penalty`.
    """

    ids: list[int]
    score: float


class BeamRow:
    """The search for one prompt.

    Attributes:
        tokens: int64 `[k, T]`, prompt and answer of each beam; `length` columns are filled.
        scores: fp32 `[k]`, log probability of each beam, best first.
        finished: at most k answers, best first.
        done: whether the search is over.

    Args:
        prompt: its ids.
        params: its settings.
        limit: most new tokens.
        stop_token_ids: ids that end an answer.
    """

    def __init__(
        self, prompt: Sequence[int], params: SamplingParams, limit: int, stop_token_ids: frozenset[int]
    ) -> None:
        beams = params.num_beams
        self._params = params
        self._limit = limit
        self._stop_ids = np.array([] if params.ignore_eos else sorted(stop_token_ids), np.int64)
        self._prompt_length = self.length = len(prompt)
        self.tokens = np.zeros((beams, len(prompt) + limit), np.int64)
        self.tokens[:, : len(prompt)] = prompt
        self.scores = np.full(beams, _NEVER, np.float32)
        self.scores[0] = 0.0
        self.finished: list[Hypothesis] = []
        self.done = limit == 0

    def advance(self, log_probs: np.ndarray) -> np.ndarray:
        """Extends the beams by one token.

        Args:
            log_probs: fp32 `[k, V]`, of the token after each beam.

        Returns:
            int64 `[k]`: the beam that each new beam extends. Meaningless once the search is done.
        """
        beams, vocabulary = log_probs.shape
        totals = (self._penalised(log_probs) + self.scores[:, None]).ravel()
        # Each beam can end in every stop token, and still k beams must be left to go on.
        candidates = largest(totals, max(2, 1 + len(self._stop_ids)) * beams)
        parents, tokens = np.divmod(candidates, vocabulary)
        scores = totals[candidates]
        self.length += 1
        ends = np.isin(tokens, self._stop_ids) | (self._new_tokens == self._limit)
        for index in np.flatnonzero(ends[:beams]):
            self._finish(parents[index], tokens[index], scores[index])
        live = np.flatnonzero(~ends)[:beams]
        if len(live) < beams:
            self.done = True
            return parents[:beams]
        self.tokens = self.tokens[parents[live]]
        self.tokens[:, self.length - 1] = tokens[live]
        self.scores = scores[live]
        self.done = self._cannot_improve()
        return parents[live]

    def best(self) -> Hypothesis:
        """The answer; empty where the prompt left no room for one."""
        return self.finished[0] if self.finished else Hypothesis([], 0.0)

    @property
    def _new_tokens(self) -> int:
        return self.length - self._prompt_length

    def _penalised(self, log_probs: np.ndarray) -> np.ndarray:
        penalty = np.float32(self._params.repetition_penalty)
        if penalty == 1:
            return log_probs
        history = self.tokens[:, : self.length]
        seen = np.take_along_axis(log_probs, history, axis=1)
        changed = np.where(seen < 0, seen * penalty, seen / penalty)
        log_probs = log_probs.copy()
        np.put_along_axis(log_probs, history, changed, axis=1)
        return log_probs

    def _finish(self, parent: int, token: int, score: np.float32) -> None:
        ids = [*self.tokens[parent, self._prompt_length : self.length - 1].tolist(), int(token)]
        self.finished.append(Hypothesis(ids, float(self._normalised(score, self._new_tokens))))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self._params.num_beams :]

    def _normalised(self, score: np.float32, length: int) -> np.float32:
        return score / np.float32(float(length) ** self._params.length_penalty)

    def _cannot_improve(self) -> bool:
        """Whether the best running beam cannot join the finished answers; unless "never", is unlikely to."""
        if len(self.finished) < self._params.num_beams:
            return False
        if self._params.early_stopping is True:
            return True
        longest = self._params.early_stopping == "never" and self._params.length_penalty > 0
        hoped = self._normalised(self.scores[0], self._limit if longest else self._new_tokens)
        return not hoped > self.finished[-1].score


def beam_search(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    stop_token_ids: frozenset[int] = frozenset(),
) -> list[Hypothesis]:
    """Returns the best answer to each prompt.

    Args:
        runtime: runs the model.
        prompts: ids of each row.
        params: settings of each row; `num_beams` may differ.
        stop_token_ids: ids that end an answer, unless its row has `ignore_eos`.

    Raises:
        ConfigError: see `check_prompts`.
    """
    check_prompts(runtime, prompts, params)
    limits = row_limits(runtime, prompts, params)
    searches = [BeamRow(*row, stop_token_ids) for row in zip(prompts, params, limits, strict=True)]
    running = [search for search in searches if not search.done]
    if running:
        _search(runtime, running)
    return [search.best() for search in searches]


def _search(runtime: Runtime, running: list[BeamRow]) -> None:
    """Runs searches to their end; each prompt is prefilled once, and finished searches leave the batch."""
    runner = runtime.start(len(running), max(search.tokens.shape[1] for search in running))
    logits = runner.forward(*right_padded([search.tokens[0, : search.length].tolist() for search in running]))
    widths = [1] * len(running)
    while True:
        log_probs = log_softmax(last_logits(logits))
        rows: list[np.ndarray] = []
        first = 0
        for search, width in zip(running, widths, strict=True):
            beams = len(search.scores)
            # After prefill one row stands for all beams of its search.
            source = log_probs[first : first + width]
            parents = search.advance(source if width == beams else np.repeat(source, beams, axis=0))
            if not search.done:
                rows.append(first + np.minimum(parents, width - 1))
            first += width
        running = [search for search in running if not search.done]
        if not running:
            return
        widths = [len(search.scores) for search in running]
        order = np.concatenate(rows)
        runner.reorder(order)
        ids = np.concatenate([search.tokens[:, search.length - 1] for search in running])[:, None]
        logits = runner.forward(ids, np.ones(len(ids), np.int64), np.zeros_like(ids))


def last_logits(logits: Any) -> np.ndarray:
    """Returns logits `[R, 1, V]` in an OrtValue as an array `[R, V]`.

    Raises:
        LogitsError: the largest of a row is not finite.
    """
    last: np.ndarray = logits.numpy()[:, -1]
    largest_ones = last.max(axis=-1)
    if not np.isfinite(largest_ones).all():
        row = int(np.flatnonzero(~np.isfinite(largest_ones))[0])
        raise LogitsError(f"{largest_ones[row]} in row {row}")
    return last


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, in fp32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of a vector, largest first; the lower index comes first among equals."""
    count = min(count, len(values))
    chosen = np.sort(np.argpartition(values, len(values) - count)[len(values) - count :])
    return chosen[np.argsort(-values[chosen], kind="stable")]
