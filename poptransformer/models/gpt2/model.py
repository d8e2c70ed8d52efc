# SPDX-License-Identifier: Apache-2.0
"""GPT-2 (https://openai.com/research/better-language-models; transformers GPT2LMHeadModel)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poptransformer.checkpoint import StateDict
from poptransformer.models.base_model import HFDecBaseModel

if TYPE_CHECKING:
    import onnx_ir as ir


class GPT2DecModel(HFDecBaseModel):
    """GPT-2 language model."""

    def process_hf_model_state_dict(self, state_dict: StateDict) -> StateDict:
        tied = self.hf_config.get("tie_word_embeddings", True)
        return self.as_causal_lm(state_dict, "transformer", "wte.weight", tied)

    @property
    def position_limit(self) -> int | None:
        return self.hf_config.n_positions

    def build_model_graph(self) -> ir.Value:
        from poptransformer.layers import LMHead
        from poptransformer.models.gpt2.layers import GPT2Transformer

        config = self.hf_config
        transformer = GPT2Transformer(None, "transformer", config)
        tied = transformer.wte if config.get("tie_word_embeddings", True) else None
        lm_head = LMHead(None, "lm_head", config.vocab_size, config.n_embd, tie_weight=tied)
        return lm_head(self.graph, transformer(self.graph, self.step))
