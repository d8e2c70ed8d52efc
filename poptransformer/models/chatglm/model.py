# SPDX-License-Identifier: Apache-2.0
"""ChatGLM-6B (https://huggingface.co/THUDM/chatglm-6b), a GLM (https://arxiv.org/abs/2103.10360)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poptransformer.checkpoint import StateDict, unpacked_rows
from poptransformer.errors import ConfigError
from poptransformer.models.chatglm_family import HFChatGLMModel

if TYPE_CHECKING:
    import onnx_ir as ir

# ASCII punctuation beside a Chinese character, and what the original's chat makes of it.
_FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")
_PUNCTUATION = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


class ChatGLMDecModel(HFChatGLMModel):
    """ChatGLM-6B language model.

    A prompt is a context, `[gMASK]` and BOS, which the tokenizer adds; it comes in one step.
    """

    @property
    def trained_length(self) -> int | None:
        return self.hf_config.get("max_sequence_length", 2048)

    @property
    def prompt_marks(self) -> tuple[tuple[int, ...], ...]:
        from poptransformer.models.chatglm.prompt import MarkIds

        marks = MarkIds.of(self.hf_config)
        return (marks.gmask, marks.mask), (marks.bos,)

    def process_hf_model_state_dict(self, state_dict: StateDict) -> StateDict:
        """Gives packed weights (chatglm-6b-int4, -int8) as the matrices that they stand for, and leaves out buffers."""
        config = self.hf_config
        depths = {"dense_4h_to_h": config.get("inner_hidden_size") or 4 * config.hidden_size}

        def bits_of(key: str) -> int:
            depth = depths.get(key.split(".")[-2], config.hidden_size)
            return 4 if 2 * state_dict.shape(key)[-1] == depth else 8

        unpacked = unpacked_rows(state_dict, bits_of)
        state_dict = unpacked.renamed(lambda key: None if key.endswith("rotary_emb.inv_freq") else key)
        return self.as_causal_lm(state_dict, "transformer", "word_embeddings.weight", self._is_tied)

    @property
    def _is_tied(self) -> bool:
        return self.hf_config.get("tie_word_embeddings", True)

    def build_model_graph(self) -> ir.Value:
        from poptransformer.layers import LMHead
        from poptransformer.models.chatglm.layers import ChatGLMTransformer

        config = self.hf_config
        if not config.get("position_encoding_2d", True):
            raise ConfigError(
                f"{self.checkpoint.source} has position_encoding_2d false; only 2D positions are built here, which all "
                "published checkpoints have."
            )
        self.refuse_prompt_tuning()
        transformer = ChatGLMTransformer(None, "transformer", config, self.num_layers)
        tied = transformer.word_embeddings if self._is_tied else None
        lm_head = LMHead(None, "lm_head", config.vocab_size, config.hidden_size, tie_weight=tied)
        return lm_head(self.graph, transformer(self.graph, self.step))

    def polish(self, answer: str) -> str:
        """Gives Chinese text its full-width punctuation, as the original's chat does."""
        return _PUNCTUATION.sub(lambda mark: mark[0].translate(_FULL_WIDTH), super().polish(answer))
