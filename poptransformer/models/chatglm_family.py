# SPDX-License-Identifier: Apache-2.0
"""What ChatGLM-6B and its successors have in common."""

from __future__ import annotations

from poptransformer.errors import ConfigError
from poptransformer.models.chat_model import HFChatModel


class HFChatGLMModel(HFChatModel):
    """A chat model of the ChatGLM family."""

    def refuse_prompt_tuning(self) -> None:
        """Raises where a checkpoint has a prefix of its own before every prompt (P-Tuning).

        Raises:
            ConfigError: it has.
        """
        if self.hf_config.get("pre_seq_len"):
            raise ConfigError(
                f"{self.checkpoint.source} is tuned with a prefix of {self.hf_config.pre_seq_len} (P-Tuning), which is "
                "not built here. Use a checkpoint without pre_seq_len."
            )

    def polish(self, answer: str) -> str:
        """Does what `process_response` of the checkpoints' code does."""
        return answer.strip().replace("[[训练时间]]", "2023年")
