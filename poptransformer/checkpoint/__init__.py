# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder, hub name, package resource or `.gguf` file as config, lazy weights, tokenizer.

The names are imported when they are first used, numpy with them and nothing heavier: opening a saved model takes a few
of these modules, and each takes a millisecond or so of its first token. What a format needs is imported when a file of
it is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poptransformer.checkpoint.blank_weights import blank_checkpoint
    from poptransformer.checkpoint.checkpoint import Checkpoint, save_checkpoint_files
    from poptransformer.checkpoint.errors import (
        CheckpointError,
        CheckpointNotFoundError,
        CorruptCheckpointError,
        MissingConfigKeyError,
        MissingWeightError,
        ShapeMismatchError,
        TokenizerError,
        UnsupportedCheckpointError,
    )
    from poptransformer.checkpoint.files import SAVED_MODEL
    from poptransformer.checkpoint.folder import open_checkpoint_files
    from poptransformer.checkpoint.hf_config import HFConfig
    from poptransformer.checkpoint.integer_rows import packed_rows, unpacked_rows
    from poptransformer.checkpoint.lazy_array import LazyArray, PackedBlocks, reordered_rows
    from poptransformer.checkpoint.mapped_file import release
    from poptransformer.checkpoint.open import open_checkpoint, random_checkpoint
    from poptransformer.checkpoint.state_dict import LazyTensor, StateDict
    from poptransformer.checkpoint.tokenizer import Tokenizer

__all__ = [
    "SAVED_MODEL",
    "Checkpoint",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CorruptCheckpointError",
    "HFConfig",
    "LazyArray",
    "LazyTensor",
    "MissingConfigKeyError",
    "MissingWeightError",
    "PackedBlocks",
    "ShapeMismatchError",
    "StateDict",
    "Tokenizer",
    "TokenizerError",
    "UnsupportedCheckpointError",
    "blank_checkpoint",
    "open_checkpoint",
    "open_checkpoint_files",
    "packed_rows",
    "random_checkpoint",
    "release",
    "reordered_rows",
    "save_checkpoint_files",
    "unpacked_rows",
]

# No name is that of a module: the module, once imported, would hide it.
_MODULES = {
    "SAVED_MODEL": "files",
    "Checkpoint": "checkpoint",
    "HFConfig": "hf_config",
    "LazyArray": "lazy_array",
    "LazyTensor": "state_dict",
    "PackedBlocks": "lazy_array",
    "StateDict": "state_dict",
    "Tokenizer": "tokenizer",
    "blank_checkpoint": "blank_weights",
    "open_checkpoint": "open",
    "open_checkpoint_files": "folder",
    "packed_rows": "integer_rows",
    "random_checkpoint": "open",
    "release": "mapped_file",
    "reordered_rows": "lazy_array",
    "save_checkpoint_files": "checkpoint",
    "unpacked_rows": "integer_rows",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
