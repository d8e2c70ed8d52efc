# SPDX-License-Identifier: Apache-2.0
"""Which runtime a compiled model runs in."""

from __future__ import annotations

from poptransformer.runtime.compiled import CompiledModel
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.mpi_runtime import MPIRuntime
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime
from poptransformer.runtime.threaded import ThreadedRuntime

AnyRuntime = Runtime | ThreadedRuntime | MPIRuntime


def open_runtime(
    compiled: CompiledModel, settings: SessionSettings | None = None, distribution: Distribution | None = None
) -> AnyRuntime:
    """Returns what runs a model: its only rank, all of them as threads, or this process's one."""
    settings, distribution = settings or SessionSettings(), distribution or Distribution()
    if compiled.info.num_ranks == 1:
        return Runtime(compiled, settings)
    if distribution.world is not None:
        return MPIRuntime(compiled, settings, distribution, distribution.world)
    return ThreadedRuntime(compiled, settings, distribution)
