# SPDX-License-Identifier: Apache-2.0
"""Language models of the layers API, as `poptransformer.nn.LanguageModel` saves them."""

from __future__ import annotations

import functools

import onnx_ir as ir

from poptransformer.errors import ConfigError
from poptransformer.layers import EmbeddingLayer, LayerNorm, LMHead, TransformerEncoder, TransformerEncoderLayer
from poptransformer.models.base_model import HFDecBaseModel

# Arguments of the layer that the config may hold, under their own names.
_LAYER_KEYS = (
    *("norm_first", "attention_type", "use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"),
)
TABLES = ("learned", "fixed")
BIASES = ("relative", "alibi")


class LayersLM(HFDecBaseModel):
    """Embeddings, layers that attend causally, and a head."""

    @property
    def position_limit(self) -> int | None:
        has_table = self.hf_config.get("position_embedding_type", "learned") in TABLES
        return self.hf_config.max_position_embeddings if has_table else None

    def build_model_graph(self) -> ir.Value:
        config, graph, step = self.hf_config, self.graph, self.step
        size, eps = config.hidden_size, config.get("layer_norm_eps", 1e-5)
        embedding = self._embedding()
        layer = functools.partial(
            TransformerEncoderLayer,
            d_model=size,
            nhead=config.num_attention_heads,
            dim_feedforward=config.intermediate_size,
            activation=config.get("hidden_act", "gelu"),
            layer_norm_eps=eps,
            **{key: config[key] for key in _LAYER_KEYS if key in config},
        )
        norm = functools.partial(LayerNorm, input_size=size, eps=eps) if config.get("final_norm", True) else None
        encoder = TransformerEncoder(None, "encoder", layer, config.num_hidden_layers, norm)
        head = LMHead(None, "head", config.vocab_size, size, use_bias=config.get("head_bias", True))
        x = embedding(graph, step.input_ids, position_ids=step.position_ids)
        x = encoder(
            *(graph, x),
            rotary_position_embedding_helper=embedding.get_rope_helper(),
            self_attn_position_bias=embedding.get_step_bias(step),
            step=step,
        )
        return head(graph, step.chosen(x))

    def _embedding(self) -> EmbeddingLayer:
        config = self.hf_config
        positions = config.get("position_embedding_type", "learned")
        if positions in BIASES and self.fp8_cache:
            raise ConfigError(
                f"fp8_cache is true, but with {positions} positions keys and values keep 32 bits. Set "
                "model.fp8_cache=false."
            )
        return EmbeddingLayer(
            *(None, "embedding", config.vocab_size, config.hidden_size),
            position_embedding_type=positions,
            max_position_embeddings=config.max_position_embeddings,
            num_heads=config.num_attention_heads if positions in BIASES else None,
            rotary_dim=config.get("rotary_dim"),
            rope_theta=config.get("rope_theta", 10000.0),
        )
