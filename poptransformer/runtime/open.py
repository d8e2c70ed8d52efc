# SPDX-License-Identifier: Apache-2.0
"""Which runtime a compiled model runs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime

if TYPE_CHECKING:
    from poptransformer.runtime.mpi_runtime import MPIRuntime
    from poptransformer.runtime.threaded import ThreadedRuntime

AnyRuntime: TypeAlias = "Runtime | ThreadedRuntime | MPIRuntime"


def open_runtime(
    compiled: CompiledModel, settings: SessionSettings | None = None, distribution: Distribution | None = None
) -> AnyRuntime:
    """Returns what runs a model: its only rank, all of them as threads, or this process's one."""
    settings, distribution = settings or SessionSettings(), distribution or Distribution()
    if compiled.info.num_ranks == 1:
        return Runtime(compiled, settings)
    if distribution.world is not None:
        from poptransformer.runtime.mpi_runtime import MPIRuntime

        return MPIRuntime(compiled, settings, distribution, distribution.world)
    from poptransformer.runtime.threaded import ThreadedRuntime

    return ThreadedRuntime(compiled, settings, distribution)
