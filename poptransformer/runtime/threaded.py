# SPDX-License-Identifier: Apache-2.0
"""A model of several ranks in one process: each is a `Runtime` in a thread of its own, and all do the same steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from poptransformer.errors import PopTransformerError
from poptransformer.generation import Rows, SamplingParams
from poptransformer.parallel.communicator import Groups, ThreadGroup
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.compiled_facts import CompiledFacts
from poptransformer.runtime.distribution import Distribution, rank_runtime
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime
from poptransformer.runtime.staged import StagedRuntime
from poptransformer.runtime.timeline import Event
from poptransformer.runtime.workers import Workers


class ThreadedRuntime(CompiledFacts):
    """Runs a model whose replicas and stages are threads; see `Runtime` for what its methods do.

    Attributes:
        compiled: the first replica, with the others as its peers.
        ranks: by number: rank `stage * replicas + replica`.

    Args:
        compiled: see above.
        settings: `threads` is what all ranks together may use.
        distribution: see there.
    """

    def __init__(self, compiled: CompiledModel, settings: SessionSettings, distribution: Distribution) -> None:
        self.compiled = compiled
        self.settings = settings
        self._distribution = distribution
        every = (compiled, *compiled.peers)
        replicas, stages = compiled.info.num_replicas, compiled.info.num_stages
        if len(every) != replicas:
            raise PopTransformerError(
                f"{compiled.folder or 'The model'} has the weights of {len(every)} of {replicas} replicas: it was "
                "compiled under MPI. Run it under MPI again, or compile it anew."
            )
        timeout = distribution.timeout
        by_stage = [ThreadGroup(replicas, timeout, first=stage * replicas) for stage in range(stages)]
        by_replica = [ThreadGroup(stages, timeout, first=replica, stride=replicas) for replica in range(replicas)]
        self._workers = Workers(replicas * stages, [*by_stage, *by_replica], timeout)
        # Stages that run in turn can have all cores each.
        together = replicas * (stages if distribution.micro_batch else 1)
        threads = max(1, settings.num_threads // together)

        def make(rank: int) -> Runtime:
            stage, replica = divmod(rank, replicas)
            groups = Groups(
                replicas=by_stage[stage].join(replica) if replicas > 1 else None,
                stages=by_replica[replica].join(stage) if stages > 1 else None,
            )
            prefix = f"{settings.profile_prefix}-rank{rank}" if settings.profile_prefix else None
            own = dataclasses.replace(settings, threads=threads, profile_prefix=prefix, groups=groups)
            return rank_runtime(every[replica], own, stage, distribution)

        self.ranks = self._workers.all(make)

    @property
    def timeline(self) -> list[Event]:
        """The last pieces of work of all ranks; empty where there are no stages."""
        return [event for rank in self.ranks if isinstance(rank, StagedRuntime) for event in rank.timeline]

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
