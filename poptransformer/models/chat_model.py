# SPDX-License-Identifier: Apache-2.0
"""`HFChatModel`: a decoder that one talks with, and that remembers what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from poptransformer.errors import ConfigError
from poptransformer.models.base_model import HFDec2stageBaseModel


class HFChatModel(HFDec2stageBaseModel):
    """A decoder for conversations, by the chat template of its checkpoint or tokenizer class.

    A question is `inputs.input_string`. With `inputs.use_history` it goes on with the conversation so far, and
    `build_output_dict` adds it and its answer to that. `inputs.input_string_list` reads plain prompts, as elsewhere.

    Attributes:
        history: the conversation so far: messages `{"role": "user" | "assistant", "content": text}`, oldest first.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.history: list[dict[str, str]] = []
        self._question: dict[str, str] | None = None

    def build_input_dict(
        self,
        input_string_list: Sequence[str] | None = None,
        chat: bool = False,
        *,
        input_string: str | None = None,
        use_history: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tokenizes a question, or prompts.

        Args:
            input_string_list: prompts, see `HFDecBaseModel`.
            chat: wrap each prompt as a user's message; a question always is one.
            input_string: a question; None for prompts.
            use_history: ask it in the conversation so far, and remember it; otherwise it stands alone.
            **kwargs: nothing else is known; models for other inputs override this method.

        Raises:
            ConfigError: both a question and prompts, or a history without a question.
        """
        self._question = None
        if input_string is None:
            if use_history:
                raise ConfigError("inputs.use_history is set without inputs.input_string; ask a question there.")
            return super().build_input_dict(input_string_list, chat, **kwargs)
        if input_string_list:
            raise ConfigError(
                "inputs has both input_string, a question, and input_string_list, prompts; set one of them to null."
            )
        if kwargs:
            raise ConfigError(f"Unknown inputs {sorted(kwargs)}; options: ['input_string', 'use_history'].")
        question = {"role": "user", "content": input_string}
        if use_history:
            self._question = question
        text = self.tokenizer.apply_chat_template([*(self.history if use_history else []), question])
        return self.pad([self.tokenizer.encode(text, add_special_tokens=False)])

    def build_output_dict(self, anchor_arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Decodes the answers; that to a question with history becomes part of it."""
        output_dict = super().build_output_dict(anchor_arrays)
        answers = output_dict["output_strings"] = [self.polish(text) for text in output_dict["output_strings"]]
        if self._question is not None:
            self.history += [self._question, {"role": "assistant", "content": answers[0]}]
            self._question = None
        return output_dict

    def polish(self, answer: str) -> str:
        """Hook: what becomes of a complete answer."""
        return answer.strip()
