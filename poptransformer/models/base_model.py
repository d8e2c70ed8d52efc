# SPDX-License-Identifier: Apache-2.0
"""Base classes of decoders: the arrays that go in and the text that comes out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from poptransformer.build import check_positive
from poptransformer.errors import ConfigError
from poptransformer.models.hf_model import HFModel

__all__ = ["HFDec2stageBaseModel", "HFDecBaseModel", "HFModel"]

logger = logging.getLogger(__name__)


class HFDecBaseModel(HFModel):
    """A decoder: prompts in, continuations out, through one step graph."""

    def encode_prompt(self, text: str, chat: bool = False) -> list[int]:
        """Tokenizes one prompt, through the chat template where `chat` is set."""
        if chat:
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": text}])
            return self.tokenizer.encode(text, add_special_tokens=False)
        return self.tokenizer.encode(text)

    def build_input_dict(
        self, input_string_list: Sequence[str] | None = None, chat: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenizes the prompts into a right-padded batch.

        Args:
            input_string_list: one prompt per row, at most `batch_size * batch_per_step`; more are dropped.
            chat: wrap each prompt as a user's message by the checkpoint's chat template.
            **kwargs: nothing else is known; models for other inputs override this method.

        Returns:
            `input_ids` int64 `[B, L]` and `lengths` int64 `[B]`.
        """
        if kwargs:
            raise ConfigError(f"Unknown inputs {sorted(kwargs)}; options: ['input_string_list', 'chat'].")
        prompts = list(input_string_list or [])
        if not prompts:
            raise ConfigError("inputs.input_string_list is empty; give at least one prompt.")
        capacity = self.build.batch_size * self.build.batch_per_step
        if len(prompts) > capacity:
            logger.warning("num input strings is larger than batch size, truncating")
            prompts = prompts[:capacity]
        return self.pad([self.encode_prompt(prompt, chat) for prompt in prompts])

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Right-pads rows of ids into one array."""
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.zeros((len(rows), max(1, lengths.max())), np.int64)
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = row
        return {"input_ids": ids, "lengths": lengths}

    def build_output_dict(self, anchor_arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Decodes the generated ids.

        Args:
            anchor_arrays: `output_ids` int64 `[B, T]`, `output_lengths` int64 `[B]`.

        Returns:
            `output_strings`: one text per row; `output_ids`: one list per row; `decode_step`: longest row's tokens.
        """
        lengths = anchor_arrays["output_lengths"]
        rows = [ids[:n].tolist() for ids, n in zip(anchor_arrays["output_ids"], lengths, strict=True)]
        return {
            "output_strings": [self._before_stop(self.tokenizer.decode(row)) for row in rows],
            "output_ids": rows,
            "decode_step": int(lengths.max()),
        }

    def _before_stop(self, text: str) -> str:
        """Cuts the text at the first of the model's stop strings."""
        found = [position for stop in self.sampling["stop"] if (position := text.find(stop)) >= 0]
        return text[: min(found)] if found else text


class HFDec2stageBaseModel(HFDecBaseModel):
    """A decoder whose prompts are limited to `input_length` tokens: a prefill stage of that size, then decoding.

    Args:
        input_length: most tokens of a prompt.
        **kwargs: see `HFModel`.
    """

    def __init__(self, *, input_length: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if input_length is not None:
            check_positive("input_length", input_length)
        self.input_length = input_length

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        longest = max(len(row) for row in rows)
        if self.input_length is not None and longest > self.input_length:
            raise ConfigError(
                f"A prompt has {longest} tokens, but model.input_length is {self.input_length}. "
                "Shorten the prompt or raise model.input_length."
            )
        return super().pad(rows)
