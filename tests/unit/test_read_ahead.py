# SPDX-License-Identifier: Apache-2.0
"""Files that are read into the page cache ahead of their use."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bench.page_cache import evict, resident_share
from poptransformer import read_ahead as module
from poptransformer.read_ahead import read_ahead

MEGABYTE = 1 << 20


def finished(thread: threading.Thread) -> None:
    assert thread.daemon  # holds up no process that ends
    thread.join(60)
    assert not thread.is_alive()


def test_all_files_are_there(tmp_path: Path) -> None:
    sizes = {"weights.bin": 24 * MEGABYTE + 5, "tokenizer.json": 2 * MEGABYTE, "config.json": 7, "empty": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"\1" * size)
    evict(tmp_path)
    finished(read_ahead(tmp_path))
    for name in ("weights.bin", "tokenizer.json"):
        assert resident_share(tmp_path / name) == 1.0
    assert _descriptors(tmp_path) == []


def test_what_cannot_be_read_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(2 * MEGABYTE))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "replica-0").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    finished(read_ahead(tmp_path))
    finished(read_ahead(tmp_path / "nowhere"))
    assert _descriptors(tmp_path) == []


@pytest.mark.parametrize("size", [0, 3 * MEGABYTE])
def test_a_file_that_becomes_shorter(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(8 * MEGABYTE))
    opened = module._opened

    def shortened(folder: Path) -> list:
        found = list(opened(folder))
        os.truncate(path, size)
        return found

    monkeypatch.setattr(module, "_opened", shortened)
    finished(read_ahead(tmp_path))


def _descriptors(folder: Path) -> list[str]:
    """What this process has open in the folder."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # closed by now
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def test_a_file_that_would_fill_the_memory_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(module, "_send", lambda _, __, size: sent.append(size))
    for megabytes in (2, 3, 4):
        (tmp_path / f"{megabytes}.bin").write_bytes(bytes(megabytes * MEGABYTE))
    finished(read_ahead(tmp_path))
    assert sent == [2 * MEGABYTE, 3 * MEGABYTE, 4 * MEGABYTE]
    monkeypatch.setattr(module, "_memory", lambda: 8 * MEGABYTE)
    finished(read_ahead(tmp_path))
    assert sent[3:] == [2 * MEGABYTE, 3 * MEGABYTE]
    assert _descriptors(tmp_path) == []
