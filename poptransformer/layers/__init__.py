# SPDX-License-Identifier: Apache-2.0
"""Layers: small classes that bind weights from a checkpoint and add nodes to the graph."""

from poptransformer.layers.attention import Attention
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding import Embedding
from poptransformer.layers.embedding_layer import EmbeddingLayer
from poptransformer.layers.embedding_positions import (
    AlibiPositionEmbeddingLayer,
    FixedPositionEmbeddingLayer,
    LearnedPositionEmbeddingLayer,
    RelativePositionEmbeddingLayer,
    RotaryPositionEmbeddingHelper,
)
from poptransformer.layers.feed_forward import FeedForwardNetwork
from poptransformer.layers.linear import Conv1D, Linear
from poptransformer.layers.linformer import LinformerAttention, LinformerEncoder, LinformerEncoderLayer
from poptransformer.layers.lm_head import LMHead
from poptransformer.layers.masks import causal_mask
from poptransformer.layers.mlp import MLP, GatedMLP
from poptransformer.layers.multihead_attention import MultiheadAttention
from poptransformer.layers.norm import LayerNorm, RMSLayerNorm
from poptransformer.layers.rotary import RotaryEmbedding
from poptransformer.layers.transformer import Transformer
from poptransformer.layers.transformer_decoder import TransformerDecoder, TransformerDecoderLayer
from poptransformer.layers.transformer_encoder import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "Attention",
    "BaseLayer",
    "Conv1D",
    "Embedding",
    "GatedMLP",
    "LMHead",
    "LayerNorm",
    "Linear",
    "MLP",
    "RMSLayerNorm",
    "RotaryEmbedding",
    "AlibiPositionEmbeddingLayer",
    "EmbeddingLayer",
    "FeedForwardNetwork",
    "FixedPositionEmbeddingLayer",
    "LearnedPositionEmbeddingLayer",
    "LinformerAttention",
    "LinformerEncoder",
    "LinformerEncoderLayer",
    "MultiheadAttention",
    "RelativePositionEmbeddingLayer",
    "RotaryPositionEmbeddingHelper",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "causal_mask",
]
