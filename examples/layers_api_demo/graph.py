# SPDX-License-Identifier: Apache-2.0
"""The model of `cb_transformer.py` as a graph: layers of the same names, which find the trained weights."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers import (
    BaseLayer,
    EmbeddingLayer,
    LMHead,
    TransformerEncoder,
    TransformerEncoderLayer,
    causal_mask,
)


class TransformerModel(BaseLayer):
    """Logits of the next letter, for each letter of a row."""

    def __init__(self, model_params: dict[str, Any]) -> None:
        super().__init__()
        vocab_size, d_model = model_params["vocab_size"], model_params["embedding_size"]
        self.scale = math.sqrt(d_model)
        self.encoder = EmbeddingLayer(
            self.context,
            "encoder",
            vocab_size=vocab_size,
            embedding_size=d_model,
            position_embedding_type="fixed",
            max_position_embeddings=model_params["seq_len"],
        )
        layer = functools.partial(
            TransformerEncoderLayer,
            d_model=d_model,
            nhead=model_params["num_heads"],
            dim_feedforward=model_params["hidden_size"],
            activation=model_params["nonlinearity"],
        )
        layers = model_params["num_hidden_layers"]
        self.transformer_encoder = TransformerEncoder(self.context, "transformer_encoder", layer, layers)
        self.decoder = LMHead(self.context, "decoder", vocab_size, d_model, use_bias=True)

    def __call__(self, graph: Graph, src: ir.Value) -> ir.Value:
        """Returns logits [B, L, V] for ids [B, L]."""
        x = ops.mul(graph, self.encoder(graph, src), self.scale)
        x = self.transformer_encoder(graph, x, causal_mask(graph, src))
        return self.decoder(graph, x)


def build_graph(graph: Graph, model_params: dict[str, Any]) -> dict[str, ir.Value]:
    """Adds the input `input_ids` int64 [B, L] and the model; returns the output `logits` fp32 [B, L, V]."""
    input_ids = graph.input("input_ids", ir.DataType.INT64, ["batch", "tokens"])
    return {"logits": TransformerModel(model_params)(graph, input_ids)}
