# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder, hub name, package resource or `.gguf` file as config, lazy weights, tokenizer.

Importing this package imports numpy and nothing heavier; what a format needs is imported when a file of it is
opened.
"""

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
from poptransformer.checkpoint.hf_config import HFConfig
from poptransformer.checkpoint.lazy_array import LazyArray, PackedBlocks, reordered_rows
from poptransformer.checkpoint.mapped_file import release
from poptransformer.checkpoint.open import open_checkpoint, open_checkpoint_files, random_checkpoint
from poptransformer.checkpoint.packed_rows import packed_rows, unpacked_rows
from poptransformer.checkpoint.state_dict import LazyTensor, StateDict
from poptransformer.checkpoint.tokenizer import Tokenizer
from poptransformer.checkpoint.weight_files import SAVED_MODEL

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
