# SPDX-License-Identifier: Apache-2.0
"""The other tests here skip where there is no library; this one says that there must be one."""

from __future__ import annotations

import os

import pytest

from poptransformer import native


@pytest.mark.skipif(os.environ.get(native.LIBRARY_VARIABLE) in ("", "none"), reason="switched off by the environment")
def test_the_library_is_built_and_loads() -> None:
    assert native.available(), f"{native.library_path()} is missing or cannot be loaded: run `make`"
