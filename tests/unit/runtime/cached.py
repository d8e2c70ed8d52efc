# SPDX-License-Identifier: Apache-2.0
"""A cache of compiled models under observation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poptransformer.models.base_model import HFModel
from poptransformer.sessions import Session
from tests.unit.runtime import tiny


class Cached:
    """A cache folder, and how many graphs were built for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.builds = 0

    def session(self, built: HFModel | None = None, **settings: Any) -> Session:
        """A new session with a new model, as a second start of a program has."""
        options = settings.pop("options", {})
        return tiny.compiled_session(built or tiny.model(**settings), execution_cache_name=str(self.folder), **options)

    def hits(self, built: HFModel | None = None, **settings: Any) -> bool:
        """Whether such a start builds no graph."""
        before = self.builds
        self.session(built, **settings)
        return self.builds == before

    @property
    def entry(self) -> Path:
        (path,) = self.folder.iterdir()
        return path


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cached]:
    cached = Cached(tiny.new_folder() / "cache")
    build = HFModel.build_graph

    def counted(self: HFModel) -> None:
        cached.builds += 1
        build(self)

    monkeypatch.setattr(HFModel, "build_graph", counted)
    yield cached
    shutil.rmtree(cached.folder.parent)
