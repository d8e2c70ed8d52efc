# SPDX-License-Identifier: Apache-2.0
"""Folders in Hugging Face layout, with weights or, in saved models, without."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.checkpoint import Checkpoint
from poptransformer.checkpoint.config_values import checked
from poptransformer.checkpoint.folder_tokenizer import TOKENIZER_FILES, load_folder_tokenizer
from poptransformer.checkpoint.hf_config import HFConfig, read_json_object
from poptransformer.checkpoint.state_dict import LazyTensor, StateDict
from poptransformer.checkpoint.tokenizer import stop_ids

_FINGERPRINTED = (*TOKENIZER_FILES, "config.json", "generation_config.json", "tokenizer_config.json")
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

Weights = tuple[dict[str, LazyTensor], list[bytes], list[Path]]


def open_checkpoint_files(folder: Path | str) -> Checkpoint:
    """Open what lies beside the weights, config and tokenizer: what `save_checkpoint_files` wrote."""
    return open_folder(Path(folder), str(folder), lambda _: ({}, [], []))


def open_folder(folder: Path, source: str, read_weights: Callable[[Path], Weights]) -> Checkpoint:
    """Open a folder that has a `config.json`.

    Args:
        folder: The folder.
        source: What error messages call it.
        read_weights: `weight_files.read_weights`, whose readers a saved model does not need.

    Raises:
        CheckpointNotFoundError: If there is no `config.json`.
        CorruptCheckpointError: If a file is damaged.
    """
    config = HFConfig.from_file(folder / "config.json")
    tensors, headers, files = read_weights(folder)
    path = folder / "generation_config.json"
    generation = read_json_object(path) if path.is_file() else token_ids(config)
    stops = stop_ids(checked("eos_token_id", generation.get("eos_token_id"), str(path)))
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    return Checkpoint(
        config,
        StateDict(tensors, source),
        generation_config=generation,
        fingerprint=fingerprint([*files, *(folder / file for file in _FINGERPRINTED)], headers),
        source=source,
        files=files,
        load_tokenizer=partial(load_folder_tokenizer, folder, config, stops) if has_tokenizer else None,
    )


def token_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings older checkpoints keep in their config."""
    return {key: config[key] for key in _TOKEN_KEYS if config.get(key) is not None}


def fingerprint(files: Iterable[Path], contents: Iterable[bytes]) -> str:
    """Hash names, sizes and times of files, and the given contents; whole weights are not read."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
