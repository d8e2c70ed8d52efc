# SPDX-License-Identifier: Apache-2.0
"""A model of several ranks in one process: each is a `Runtime` in a thread of its own, and all do the same steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from poptransformer.generation import Rows, SamplingParams
from poptransformer.parallel.communicator import Groups, ThreadGroup
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime
from poptransformer.runtime.workers import Workers


class ThreadedRuntime:
    """Runs a model whose replicas are threads; see `Runtime` for what its methods do.

    Attributes:
        compiled: the first replica, with the others as its peers.

    Args:
        compiled: see above.
        settings: `threads` is what all ranks together may use.
        timeout: seconds that a rank waits for another one.
    """

    def __init__(self, compiled: CompiledModel, settings: SessionSettings, timeout: float) -> None:
        self.compiled = compiled
        self.settings = settings
        replicas = (compiled, *compiled.peers)
        group = ThreadGroup(len(replicas), timeout)
        self._workers = Workers(len(replicas), [group], timeout)
        threads = max(1, settings.num_threads // len(replicas))

        def make(rank: int) -> Runtime:
            prefix = f"{settings.profile_prefix}-rank{rank}" if settings.profile_prefix else None
            groups = Groups(replicas=group.join(rank))
            own = dataclasses.replace(settings, threads=threads, profile_prefix=prefix, groups=groups)
            return Runtime(replicas[rank], own)

        self.ranks = self._workers.all(make)

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.compiled.info.max_length

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.compiled.info.vocab_size

    def make_ready(self, beams: bool) -> None:
        """Makes the sessions that generation needs."""
        self._all(lambda runtime: runtime.make_ready(beams))

    def end_profiling(self) -> list[str]:
        """Ends the profiles of all ranks; returns the files."""
        return [file for files in self._all(Runtime.end_profiling) for file in files]

    def start(self, batch: int, slots: int) -> ThreadedSteps:
        """Allocates the states for a batch of rows, on each rank."""
        return ThreadedSteps(self._workers, self._all(lambda runtime: runtime.start(batch, slots)))

    def start_tokens(self, rows: Rows, slots: int) -> ThreadedTokens:
        """The same for rows that are sampled within each step."""
        return ThreadedTokens(self._workers, self._all(lambda runtime: runtime.start_tokens(rows, slots)))

    def generate(
        self, rows: Sequence[Sequence[int]], params: Sequence[SamplingParams], stop_token_ids: frozenset[int]
    ) -> list[list[int]]:
        """Generates the answers of a batch in one onnxruntime call on each rank."""
        known = fixed_seeds(params)
        return self._all(lambda runtime: runtime.generate(rows, known, stop_token_ids))[0]

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Chooses the next token of every row; one rank does it for all."""
        return self._workers.one(0, lambda: self.ranks[0].sample(*args, **kwargs))

    def _all(self, job: Callable[[Runtime], Any]) -> list[Any]:
        return self._workers.all(lambda rank: job(self.ranks[rank]))


class ThreadedSteps:
    """One batch of rows in flight on all ranks; see `StepRunner`."""

    def __init__(self, workers: Workers, runners: Sequence[Any]) -> None:
        self._workers = workers
        self._runners = runners

    @property
    def past_lengths(self) -> np.ndarray:
        """int64 `[batch]`, tokens of each row so far."""
        return self._runners[0].past_lengths

    def forward(self, input_ids: np.ndarray, lengths: np.ndarray, logit_positions: np.ndarray) -> ort.OrtValue:
        """Runs one step; all ranks have the logits, and the first one's are returned."""
        return self._workers.all(lambda rank: self._runners[rank].forward(input_ids, lengths, logit_positions))[0]

    def reorder(self, rows: np.ndarray) -> None:
        """Makes row b go on from where row `rows[b]` stands."""
        self._workers.all(lambda rank: self._runners[rank].reorder(rows))


class ThreadedTokens:
    """One batch of rows in flight on all ranks, which choose the same tokens; see `TokenRunner`."""

    def __init__(self, workers: Workers, runners: Sequence[Any]) -> None:
        self._workers = workers
        self._runners = runners

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Takes the prompts."""
        return self._workers.all(lambda rank: self._runners[rank].prefill(input_ids, lengths))[0]

    def decode(self) -> np.ndarray:
        """Takes the tokens of the step before."""
        return self._workers.all(lambda rank: self._runners[rank].decode())[0]


def fixed_seeds(params: Sequence[SamplingParams]) -> list[SamplingParams]:
    """Gives rows without a seed one, so that all ranks draw the same."""
    import secrets

    return [row if row.seed is not None else dataclasses.replace(row, seed=secrets.randbits(63)) for row in params]
