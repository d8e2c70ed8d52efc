# SPDX-License-Identifier: Apache-2.0
"""Llama 2 and 3 (https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783; transformers LlamaForCausalLM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poptransformer.checkpoint import StateDict
from poptransformer.models.base_model import HFDecBaseModel

if TYPE_CHECKING:
    import onnx_ir as ir


class LLAMA2DecModel(HFDecBaseModel):
    """Llama language model."""

    def process_hf_model_state_dict(self, state_dict: StateDict) -> StateDict:
        tied = self.hf_config.get("tie_word_embeddings", False)
        return self.as_causal_lm(state_dict, "model", "embed_tokens.weight", tied)

    def build_model_graph(self) -> ir.Value:
        from poptransformer.layers import LMHead
        from poptransformer.models.llama2.layers import LlamaTransformer

        config = self.hf_config
        model = LlamaTransformer(None, "model", config)
        tied = model.embed_tokens if config.get("tie_word_embeddings", False) else None
        lm_head = LMHead(None, "lm_head", config.vocab_size, config.hidden_size, tie_weight=tied)
        return lm_head(self.graph, model(self.graph, self.step))
