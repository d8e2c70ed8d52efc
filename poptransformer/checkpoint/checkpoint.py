# SPDX-License-Identifier: Apache-2.0
"""What every kind of checkpoint looks like once it is open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.errors import TokenizerError
from poptransformer.checkpoint.files import sampled_hash, write_json
from poptransformer.checkpoint.hf_config import HFConfig
from poptransformer.checkpoint.state_dict import StateDict
from poptransformer.checkpoint.tokenizer import Tokenizer


class Checkpoint:
    """A model's configuration, weights and tokenizer.

    Args:
        config: The configuration.
        state_dict: The weights by their Hugging Face names.
        generation_config: Default generation settings.
        fingerprint: A hash that changes when the configuration or the weights do.
        files: The files that it was read from.
        source: Where it came from, for people.
        load_tokenizer: Makes the tokenizer, or None if there is none.

    Attributes:
        config: As given.
        state_dict: As given.
        generation_config: As given.
        fingerprint: As given.
        source: As given.
        files: As given.
    """

    def __init__(
        self,
        config: HFConfig,
        state_dict: StateDict,
        *,
        generation_config: Mapping[str, Any],
        fingerprint: str,
        source: str,
        load_tokenizer: Callable[[], Tokenizer] | None,
        files: Iterable[Path] = (),
    ) -> None:
        self.config = config
        self.state_dict = state_dict
        self.generation_config = dict(generation_config)
        self.fingerprint = fingerprint
        self.source = source
        self.files = tuple(files)
        self._load_tokenizer = load_tokenizer

    def __repr__(self) -> str:
        return f"Checkpoint({self.config.get('model_type')}, {self.source})"

    @cached_property
    def content_hash(self) -> str:
        """A hash of what the checkpoint holds, the same for a copy of it; of large files it reads samples."""
        digest = hashlib.sha256(json.dumps(self.config.raw, sort_keys=True, default=str).encode())
        if not self.files:  # random weights: all there is to know is in the fingerprint
            digest.update(self.fingerprint.encode())
        for path in sorted(self.files):
            if path.is_file():
                digest.update(f"{path.name} {sampled_hash(path)}".encode())
        return digest.hexdigest()

    @property
    def has_tokenizer(self) -> bool:
        """Whether the checkpoint brings a tokenizer."""
        return self._load_tokenizer is not None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded when it is first used.

        Raises:
            TokenizerError: If the checkpoint has none, or it cannot be loaded.
        """
        if self._load_tokenizer is None:
            raise TokenizerError(
                f"{self.source} has no tokenizer; pass token ids instead of text, "
                "or put a tokenizer.json beside the weights"
            )
        return self._load_tokenizer()


def save_checkpoint_files(checkpoint: Checkpoint, folder: Path | str) -> None:
    """Write what belongs beside the weights: `config.json`, `generation_config.json`, the tokenizer's files.

    Each file appears complete or not at all.

    Args:
        checkpoint: The checkpoint.
        folder: Where to; made if it does not exist.

    Raises:
        TokenizerError: If the checkpoint's tokenizer cannot be loaded.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    tokenizer = checkpoint.tokenizer if checkpoint.has_tokenizer else None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", checkpoint.config.raw)
    if checkpoint.generation_config:
        write_json(folder / "generation_config.json", checkpoint.generation_config)
    if tokenizer is not None:
        tokenizer.save(folder)
