# SPDX-License-Identifier: Apache-2.0
"""The first import of numpy, whose OpenBLAS starts a thread for each core."""

from __future__ import annotations

import os
import sys

_SPIN = "OPENBLAS_THREAD_TIMEOUT"
_SHORTEST = "4"  # a power of two, in processor cycles; OpenBLAS takes no less


def import_numpy() -> None:
    """Imports numpy so that OpenBLAS's threads sleep when they have nothing to do.

    By default they wait for work by spinning for a tenth of a second, on the cores that are to open a model meanwhile,
    and nothing in inference calls OpenBLAS. Whoever has imported numpy before, or has set the variable, is left alone.
    """
    is_ours = "numpy" not in sys.modules and _SPIN not in os.environ
    if is_ours:
        os.environ[_SPIN] = _SHORTEST  # OpenBLAS reads it once, while it is loaded
    try:
        import numpy  # noqa: F401
    finally:
        if is_ours:
            del os.environ[_SPIN]
