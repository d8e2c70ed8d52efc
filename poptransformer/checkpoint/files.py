# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader never sees half of one, and recognising large ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# The file by which a folder is a saved model: its graph is fixed, so nothing can be built from it.
SAVED_MODEL = "poptransformer.json"


def is_artefact(folder: str | Path) -> bool:
    """Whether a folder is a saved model, see `poptransformer.runtime.artefact`."""
    return (Path(folder).expanduser() / SAVED_MODEL).is_file()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically: it appears complete, or the old one stays.

    Args:
        path: The file; its folder must exist.
        text: Its content.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, as Hugging Face's libraries lay theirs out.

    Args:
        path: The file; its folder must exist.
        value: Its content.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Args:
        path: The file; its folder must exist.
        data: Its content.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
        # mkstemp makes files private; a checkpoint is for whoever may read its folder.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete, in the place of the one that was there.

    Args:
        folder: its name; the folder above it is made.

    Yields:
        The folder to write to. It is removed if an error leaves the block.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_PAGE, _PAGES = 4096, 1024


def sampled_hash(path: Path) -> str:
    """Hash of a file's size and of parts of it: up to 1024 pages, evenly spread, its first and last bytes among them.

    A file that was only partly written has zeros where it should not: this finds out without reading it all.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - _PAGE)
    with path.open("rb") as file:
        for start in sorted({last * number // (_PAGES - 1) for number in range(_PAGES)}):
            file.seek(start)
            digest.update(file.read(_PAGE))
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
