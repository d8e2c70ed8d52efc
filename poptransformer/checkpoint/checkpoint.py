# SPDX-License-Identifier: Apache-2.0
"""What every kind of checkpoint looks like once it is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.errors import TokenizerError
from poptransformer.checkpoint.files import write_json
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
        source: Where it came from, for people.
        load_tokenizer: Makes the tokenizer, or None if there is none.

    Attributes:
        config: As given.
        state_dict: As given.
        generation_config: As given.
        fingerprint: As given.
        source: As given.
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
    ) -> None:
        self.config = config
        self.state_dict = state_dict
        self.generation_config = dict(generation_config)
        self.fingerprint = fingerprint
        self.source = source
        self._load_tokenizer = load_tokenizer

    def __repr__(self) -> str:
        return f"Checkpoint({self.config.get('model_type')}, {self.source})"

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
