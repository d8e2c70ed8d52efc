# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs must not change unnoticed: names are what users and passes refer to."""

from __future__ import annotations

import difflib

import pytest

from tests.golden.graphs import CONFIGS, describe, path


@pytest.mark.parametrize("family", list(CONFIGS))
def test_the_graph_is_as_it_was(family: str) -> None:
    found = describe(family)
    golden = path(family).read_text(encoding="utf-8")
    diff = difflib.unified_diff(golden.splitlines(), found.splitlines(), path(family).name, "compiled now", lineterm="")
    assert found == golden, (
        "the compiled graph has changed; if that is meant, run `python -m tests.golden.update` and commit the diff:\n"
        + "\n".join(diff)
    )
