# SPDX-License-Identifier: Apache-2.0
"""The model of `model.py` as a graph: layers of the same names, which find the trained weights."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers import (
    BaseLayer,
    EmbeddingLayer,
    LayerNorm,
    Linear,
    LinformerEncoder,
    LinformerEncoderLayer,
    LMHead,
)
from poptransformer.layers.mlp import activation


def embedding_arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the embeddings, in torch and in the graph, by the section `model`."""
    return {
        "vocab_size": params["vocab_size"],
        "embedding_size": params["hidden_size"],
        "position_embedding_type": params["position_embedding_type"] if params["use_position_embedding"] else None,
        "max_position_embeddings": params["max_position_embeddings"],
        "num_segments": 2 if params["use_segment_embedding"] else None,
    }


def layer_arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an encoder layer, in torch and in the graph, by the section `model`."""
    return {
        "d_model": params["hidden_size"],
        "nhead": params["num_heads"],
        "max_sequence_length": params["max_position_embeddings"],
        "projected_dims": params["projected_dims"],
        "attention_style": params["attention_style"],
        "dim_feedforward": params["filter_size"],
        "activation": params["encoder_nonlinearity"],
        "layer_norm_eps": params["layer_norm_epsilon"],
        "norm_first": params["use_pre_normalization"],
        "attention_type": params["attention_type"],
        "use_projection_bias_in_attention": params["use_projection_bias_in_attention"],
        "use_ffn_bias_in_attention": params["use_ffn_bias_in_attention"],
        "use_ffn_bias": params["use_ffn_bias"],
    }


class LinformerModel(BaseLayer):
    """Logits of word pieces at chosen places.

    Args:
        params: the section `model`, complete.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        size, eps = params["hidden_size"], params["layer_norm_epsilon"]
        self.size = size
        self.embedding = EmbeddingLayer(self.context, "embedding", **embedding_arguments(params))
        self.embedding_norm = LayerNorm(self.context, "embedding_norm", size, eps)
        layer = functools.partial(LinformerEncoderLayer, **layer_arguments(params))
        norm = functools.partial(LayerNorm, input_size=size, eps=eps) if params["use_pre_normalization"] else None
        self.encoder = LinformerEncoder(self.context, "encoder", layer, params["num_hidden_layers"], norm)
        self.transform = Linear(self.context, "transform", size, size, params["use_ffn_bias_in_mlm"])
        self.nonlinearity = activation(params["mlm_nonlinearity"])
        self.norm = LayerNorm(self.context, "norm", size, eps)
        tied = self.embedding.word_embeddings if params["share_embedding_weights"] else None
        self.decoder = LMHead(
            *(self.context, "decoder", params["vocab_size"], size, tied), use_bias=params["use_output_bias_in_mlm"]
        )

    def __call__(
        self,
        graph: Graph,
        input_ids: ir.Value,
        places: ir.Value,
        input_mask: ir.Value | None = None,
        segment_ids: ir.Value | None = None,
        position_ids: ir.Value | None = None,
        lengths: ir.Value | None = None,
    ) -> ir.Value:
        """Returns logits [P, V] for the arguments of the module in `model.py`."""
        x = self.embedding_norm(graph, self.embedding(graph, input_ids, position_ids, segment_ids))
        padding = None if input_mask is None else ops.equal(graph, input_mask, 0)
        x = self.encoder(graph, x, padding, lengths)
        x = ops.gather(graph, ops.reshape(graph, x, [-1, self.size]), places)
        x = self.norm(graph, self.nonlinearity(graph, self.transform(graph, x)))
        return self.decoder(graph, x)


def build_graph(graph: Graph, params: Mapping[str, Any]) -> dict[str, ir.Value]:
    """Adds inputs and model; returns the output `logits` fp32 [P, V].

    Inputs are int64: `input_ids` and `input_mask` [B, L], `places` [P], which number the B*L tokens. With `use_vsl`
    they are packed, `input_ids` and `position_ids` [1, T], `places` [P] of the T tokens, and `lengths` [B]. With
    segments there are `segment_ids`, too.
    """
    rows = [1, "tokens"] if params["use_vsl"] else ["batch", "tokens"]
    shapes: dict[str, list[int | str]] = {"input_ids": rows, "places": ["places"]}
    shapes |= {"position_ids": rows, "lengths": ["batch"]} if params["use_vsl"] else {"input_mask": rows}
    if params["use_segment_embedding"]:
        shapes["segment_ids"] = rows
    inputs = {name: graph.input(name, ir.DataType.INT64, shape) for name, shape in shapes.items()}
    return {"logits": LinformerModel(params)(graph, **inputs)}
