# SPDX-License-Identifier: Apache-2.0
"""One rank of a model whose ranks are MPI processes. All of them run the same program on the same prompts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from poptransformer.errors import PopTransformerError
from poptransformer.generation import Rows, SamplingParams
from poptransformer.parallel.mpi import World
from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.compiled_facts import CompiledFacts
from poptransformer.runtime.distribution import Distribution, rank_runtime
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.staged import StagedRuntime
from poptransformer.runtime.timeline import Event


class MPIRuntime(CompiledFacts):
    """Runs this process's rank; see `Runtime` for what its methods do.

    Attributes:
        compiled: the rank's replica.

    Args:
        compiled: see above.
        settings: without `threads`, the ranks of a host share its cores.
        distribution: see there.
        world: all ranks.
    """

    def __init__(
        self, compiled: CompiledModel, settings: SessionSettings, distribution: Distribution, world: World
    ) -> None:
        info = compiled.info
        stage, replica = world.place(info.num_replicas, info.num_stages)
        if compiled.replica != replica:
            raise PopTransformerError(f"Rank {world.rank} needs replica {replica}, but has {compiled.replica}.")
        self.compiled = compiled
        self.settings = dataclasses.replace(
            settings,
            threads=settings.threads or max(1, settings.num_threads // world.local_size),
            profile_prefix=f"{settings.profile_prefix}-rank{world.rank}" if settings.profile_prefix else None,
            groups=world.groups(info.num_replicas, info.num_stages),
        )
        self._world = world
        self._runtime = rank_runtime(compiled, self.settings, stage, distribution)

    @property
    def name_suffix(self) -> str:
        """What tells this rank's files from the others'."""
        return f"-rank{self._world.rank}"

    @property
    def timeline(self) -> list[Event]:
        """The last pieces of work of this rank; empty where there are no stages."""
        return list(self._runtime.timeline) if isinstance(self._runtime, StagedRuntime) else []

    def make_ready(self, beams: bool) -> None:
        """Makes the sessions that generation needs."""
        self._runtime.make_ready(beams)

    def end_profiling(self) -> list[str]:
        """Ends the profile of this rank; returns the files."""
        return self._runtime.end_profiling()

    def start(self, batch: int, slots: int) -> Any:
        """Allocates the states for a batch of rows."""
        return _Named(self._runtime.start(batch, slots), self._world.rank)

    def start_tokens(self, rows: Rows, slots: int) -> Any:
        """The same for rows that are sampled within each step; rows without a seed get rank 0's."""
        self._world.agree(rows.settings.seed, "the seeds")
        return _Named(self._runtime.start_tokens(rows, slots), self._world.rank)

    def generate(
        self, rows: Sequence[Sequence[int]], params: Sequence[SamplingParams], stop_token_ids: frozenset[int]
    ) -> list[list[int]]:
        """Generates the answers of a batch in one onnxruntime call."""
        seeds = np.array([row.seed or 0 for row in params], np.int64)
        if any(row.seed is None for row in params):
            seeds = np.random.default_rng().integers(2**63 - 1, size=len(params))
        self._world.agree(seeds, "the seeds")
        known = [dataclasses.replace(row, seed=int(seed)) for row, seed in zip(params, seeds, strict=True)]
        with naming(self._world.rank):
            return self._runtime.generate(rows, known, stop_token_ids)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Chooses the next token of every row."""
        return self._runtime.sample(*args, **kwargs)


class _Named:
    """A runner whose errors name the rank."""

    def __init__(self, runner: Any, rank: int) -> None:
        self._runner = runner
        self._rank = rank

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._runner, name)
        if not callable(value):
            return value

        def call(*args: Any) -> Any:
            with naming(self._rank):
                return value(*args)

        return call


@contextlib.contextmanager
def naming(rank: int) -> Iterator[None]:
    """Names the rank in errors of the block."""
    try:
        yield
    except PopTransformerError:
        raise
    except Exception as error:
        raise PopTransformerError(f"rank {rank} failed: {error}") from error
