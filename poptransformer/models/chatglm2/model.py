# SPDX-License-Identifier: Apache-2.0
"""ChatGLM2-6B (https://huggingface.co/THUDM/chatglm2-6b; transformers GlmForCausalLM)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from poptransformer.checkpoint import StateDict, unpacked_rows
from poptransformer.models.chatglm2.names import from_glm, with_prefix
from poptransformer.models.chatglm2.settings import Settings
from poptransformer.models.chatglm_family import HFChatGLMModel

if TYPE_CHECKING:
    import onnx_ir as ir


class ChatGLM2DecModel(HFChatGLMModel):
    """ChatGLM2 language model."""

    @functools.cached_property
    def settings(self) -> Settings:
        """The checkpoint's config, in one format."""
        return Settings.of(self.hf_config)

    @property
    def trained_length(self) -> int | None:
        return self.settings.max_positions

    def process_hf_model_state_dict(self, state_dict: StateDict) -> StateDict:
        if self.hf_config.get("model_type") == "glm":
            state_dict = self.as_causal_lm(state_dict, "model", "embed_tokens.weight", self.settings.is_tied)
            return state_dict.renamed(from_glm)
        bits = self.hf_config.get("quantization_bit") or 4
        return unpacked_rows(state_dict.renamed(with_prefix), lambda key: bits)

    def build_model_graph(self) -> ir.Value:
        from poptransformer.models.chatglm2.layers import ChatGLM2Transformer

        self.refuse_prompt_tuning()
        return ChatGLM2Transformer(None, "transformer", self.settings)(self.graph, self.step)
