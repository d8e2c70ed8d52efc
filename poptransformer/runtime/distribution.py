# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a model run, and what runs one of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime

if TYPE_CHECKING:
    from poptransformer.parallel.mpi import World


@dataclasses.dataclass(frozen=True)
class Distribution:
    """How several ranks run.

    Attributes:
        timeout: seconds that a rank waits for another one before the job ends.
        micro_batch: rows that go through the pipeline's stages together, so that the stages overlap; None lets the
            stages take all rows of a batch in turn.
        world: all MPI ranks; None runs the ranks as threads of this process.
    """

    timeout: float = 300.0
    micro_batch: int | None = None
    world: World | None = None


def rank_runtime(compiled: CompiledModel, settings: SessionSettings, stage: int, distribution: Distribution) -> Runtime:
    """Returns what runs one rank: a replica, or one stage of it."""
    if compiled.info.num_stages == 1:
        return Runtime(compiled, settings)
    from poptransformer.runtime.staged import StagedRuntime  # few models have stages

    return StagedRuntime(compiled, settings, stage, distribution.micro_batch)
