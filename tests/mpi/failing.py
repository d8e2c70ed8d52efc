# SPDX-License-Identifier: Apache-2.0
"""An inference.py whose rank 1 meets an error in a kernel after some tokens: its sampling settings become NaN."""

import runpy
from typing import Any

import numpy as np

from poptransformer.parallel.mpi import world
from poptransformer.runtime.token_runner import TokenRunner

decode = TokenRunner.decode
steps = 0


def failing_decode(self: Any) -> np.ndarray:
    global steps
    steps += 1
    if steps == 8 and world().rank == 1:
        self._rows.settings.temperature[:] = np.nan
    return decode(self)


TokenRunner.decode = failing_decode  # type: ignore[method-assign]
runpy.run_path("inference.py", run_name="__main__")
