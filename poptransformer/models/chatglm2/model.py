# SPDX-License-Identifier: Apache-2.0
"""ChatGLM2-6B (https://huggingface.co/THUDM/chatglm2-6b; transformers GlmForCausalLM)."""

from __future__ import annotations

import functools

import onnx_ir as ir

from poptransformer.checkpoint import HFConfig, StateDict, packed_rows
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers import BaseLayer, LMHead, RotaryEmbedding
from poptransformer.models.chat_model import HFChatModel
from poptransformer.models.chatglm2.layers import ChatGLM2Embedding, ChatGLM2Encoder
from poptransformer.models.chatglm2.names import from_glm, with_prefix
from poptransformer.models.chatglm2.settings import Settings
from poptransformer.step import Step

_SCALE = "_scale"


class ChatGLM2Transformer(BaseLayer):
    """Embedding, blocks, final norm and head (ChatGLMModel of the checkpoint's code, transformers GlmModel)."""

    def __init__(self, context: str | None, name: str, settings: Settings) -> None:
        super().__init__(context, name)
        self.embedding = ChatGLM2Embedding(self.context, "embedding", settings)
        self.rotary_pos_emb = RotaryEmbedding(
            self.context,
            "rotary_pos_emb",
            settings.rotary_dim,
            settings.rope,
            settings.max_positions,
            settings.interleaved,
        )
        self.encoder = ChatGLM2Encoder(self.context, "encoder", settings, self.rotary_pos_emb)
        tied = self.embedding.word_embeddings if settings.is_tied else None
        sizes = settings.vocab_size, settings.hidden_size
        self.output_layer = LMHead(self.context, "output_layer", *sizes, tie_weight=tied)

    def __call__(self, graph: Graph, step: Step) -> ir.Value:
        """Returns logits `[B, M, V]`."""
        with graph.nameScope(self.context):
            x = self.embedding(graph, step.input_ids)
            return self.output_layer(graph, self.encoder(graph, x, step))


class ChatGLM2DecModel(HFChatModel):
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
        return _unpacked(state_dict.renamed(with_prefix), self.hf_config)

    def build_model_graph(self) -> ir.Value:
        if self.hf_config.get("pre_seq_len"):
            raise ConfigError(
                f"{self.checkpoint.source} is tuned with a prefix of {self.hf_config.pre_seq_len} (P-Tuning), which is "
                "not built here. Use a checkpoint without pre_seq_len."
            )
        return ChatGLM2Transformer(None, "transformer", self.settings)(self.graph, self.step)

    def polish(self, answer: str) -> str:
        """Does what `process_response` of the checkpoint's code does."""
        return answer.strip().replace("[[训练时间]]", "2023年")


def _unpacked(state_dict: StateDict, config: HFConfig) -> StateDict:
    """Gives the packed matrices of chatglm2-6b-int4 as those that they stand for, and leaves out their scales."""
    scales = [key for key in state_dict if key.endswith(f".weight{_SCALE}")]
    bits = config.get("quantization_bit") or 4
    matrices = [key.removesuffix(_SCALE) for key in scales]
    packed = {key: packed_rows(state_dict, key, scale, bits) for key, scale in zip(matrices, scales, strict=True)}
    return state_dict.updated(packed).renamed(lambda key: None if key in scales else key)
