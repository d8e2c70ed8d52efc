# SPDX-License-Identifier: Apache-2.0
"""The compiled custom ops: finds the library, registers it with onnxruntime, sets its threads.

Without the library everything still runs, through the ops' function bodies; one warning says what is missing.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

LIBRARY_VARIABLE = "POPTRANSFORMER_OPS_LIBRARY"
# Must equal kVersion in custom_ops/library.cpp. Raise both when an op changes its name, inputs or meaning.
OPS_VERSION = "2"

_ROOT = Path(__file__).resolve().parents[1]
_DEFAULT_LIBRARY = _ROOT / "custom_ops" / "build" / "libpoptransformer_ops.so"


def library_path() -> Path | None:
    """Path of the library, whether or not it exists.

    The environment variable POPTRANSFORMER_OPS_LIBRARY overrides the place where `make` puts it.

    Returns:
        The path, or None where the variable is empty or "none", which disables the library.
    """
    value = os.environ.get(LIBRARY_VARIABLE)
    if value is None:
        return _DEFAULT_LIBRARY
    return None if value.lower() in ("", "none") else Path(value).absolute()


def load(options: onnxruntime.SessionOptions) -> bool:
    """Registers the custom ops with the options of a session.

    Args:
        options: options of a session that is yet to be created.

    Returns:
        True if sessions with these options run our kernels; False if they must run the function bodies. Unless the
        library is disabled, a warning then says why, once per reason and process.
    """
    path = library_path()
    if path is None or _library(path) is None:
        return False
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions have no narrower common base
        _warn(f"onnxruntime refuses the custom ops in {path}: {_first_line(error)}")
        return False
    return True


def available() -> bool:
    """True if the library is there and fits this package. Warns as `load` does if it is not."""
    path = library_path()
    return path is not None and _library(path) is not None


def set_threads(count: int | None) -> int:
    """Sets how many threads all kernels of this process share.

    Args:
        count: threads, the caller's included; None or 0 is one for each core that this process may use.

    Returns:
        The number in effect; 0 without the library.
    """
    path = library_path()
    library = _library(path) if path is not None else None
    return library.poptransformer_set_threads(count or 0) if library is not None else 0


def function(name: str) -> Any:
    """Returns a function that the library exports, as ctypes has it; None where there is no library or no such name."""
    path = library_path()
    library = _library(path) if path is not None else None
    return getattr(library, name, None)


def build_id() -> str:
    """Hash of the library's content, for the keys of caches; "none" without the library."""
    path = library_path()
    if path is None or _library(path) is None:
        return "none"
    return _file_hash(path, path.stat().st_mtime_ns)


@functools.cache
def _file_hash(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# Not cached where the library is missing: a notebook may run `make` and try again.
_loaded: dict[Path, ctypes.CDLL] = {}


def _library(path: Path) -> ctypes.CDLL | None:
    """The library at `path`, loaded once; None, after a warning, if it cannot be used."""
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        _warn(f"the custom ops are not built: {path} does not exist")
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.poptransformer_ops_version.restype = ctypes.c_char_p
        version = library.poptransformer_ops_version().decode()
    except (OSError, AttributeError) as error:
        _warn(f"the custom ops in {path} do not load: {_first_line(error)}")
        return None
    if version != OPS_VERSION:
        _warn(f"the custom ops in {path} are version {version}, but this package needs version {OPS_VERSION}")
        return None
    _loaded[path] = library
    return library


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@functools.cache
def _warn(problem: str) -> None:
    """Logs a warning, once for each problem: every session of the process would repeat it."""
    logger.warning(
        "%s. Running without them, which is correct but slower. To build them, run `make` in %s", problem, _ROOT
    )
