# SPDX-License-Identifier: Apache-2.0
"""ChatGLM-6B (https://huggingface.co/THUDM/chatglm-6b), a GLM (https://arxiv.org/abs/2103.10360)."""

from __future__ import annotations

import re

import onnx_ir as ir

from poptransformer.checkpoint import HFConfig, StateDict, unpacked_rows
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers import BaseLayer, Embedding, LayerNorm, LMHead
from poptransformer.models.chatglm.layers import ChatGLMBlock, head_dim_of
from poptransformer.models.chatglm.prompt import HalfPrecisionRotary, MarkIds, read_prompt
from poptransformer.models.chatglm_family import HFChatGLMModel
from poptransformer.step import Step

# ASCII punctuation beside a Chinese character, and what the original's chat makes of it.
_FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")
_PUNCTUATION = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


class ChatGLMTransformer(BaseLayer):
    """Embedding, blocks and final norm."""

    def __init__(self, context: str | None, name: str, config: HFConfig, num_layers: int) -> None:
        super().__init__(context, name)
        hidden_size = config.hidden_size
        self.marks = MarkIds.of(config)
        self.word_embeddings = Embedding(self.context, "word_embeddings", config.vocab_size, hidden_size, "vocabulary")
        max_positions = config.get("max_sequence_length", 2048)
        self.rotary_emb = HalfPrecisionRotary(self.context, "rotary_emb", head_dim_of(config) // 2, max_positions)
        self.layers = [ChatGLMBlock(self.context, f"layers.{i}", i, config) for i in range(num_layers)]
        eps = config.get("layernorm_epsilon", 1e-5)
        self.final_layernorm = LayerNorm(self.context, "final_layernorm", hidden_size, eps)

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns hidden states `[B, M, D]` of the tokens that get logits."""
        with graph.nameScope(self.context):
            prompt = read_prompt(graph, step, self.marks, self.rotary_emb)
            x = self.word_embeddings(graph, step.input_ids)
            for index, block in enumerate(self.layers):
                with self.block_scope(graph, index):
                    x = block(graph, x, step, prompt)
            return self.final_layernorm(graph, step.chosen(x))


class ChatGLMDecModel(HFChatGLMModel):
    """ChatGLM-6B language model.

    A prompt is a context, `[gMASK]` and BOS, which the tokenizer adds; it comes in one step.
    """

    @property
    def trained_length(self) -> int | None:
        return self.hf_config.get("max_sequence_length", 2048)

    @property
    def prompt_marks(self) -> tuple[tuple[int, ...], ...]:
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
