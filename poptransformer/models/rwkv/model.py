# SPDX-License-Identifier: Apache-2.0
"""RWKV-4 (https://arxiv.org/abs/2305.13048; transformers RwkvForCausalLM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poptransformer.checkpoint import StateDict
from poptransformer.models.base_model import HFDecBaseModel

if TYPE_CHECKING:
    import onnx_ir as ir


class RWKVDecodeModel(HFDecBaseModel):
    """RWKV-4 language model."""

    def process_hf_model_state_dict(self, state_dict: StateDict) -> StateDict:
        return self.as_causal_lm(state_dict, "rwkv", "embeddings.weight", self._is_tied, head="head")

    @property
    def trained_length(self) -> int | None:
        return self.hf_config.get("context_length")

    @property
    def _is_tied(self) -> bool:
        return self.hf_config.get("tie_word_embeddings", False)

    def build_model_graph(self) -> ir.Value:
        from poptransformer.layers import LMHead
        from poptransformer.models.rwkv.layers import RWKVTransformer

        config = self.hf_config
        rwkv = RWKVTransformer(None, "rwkv", config)
        tied = rwkv.embeddings if self._is_tied else None
        head = LMHead(None, "head", config.vocab_size, config.hidden_size, tie_weight=tied)
        return head(self.graph, rwkv(self.graph, self.step))
