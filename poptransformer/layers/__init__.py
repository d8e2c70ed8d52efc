# SPDX-License-Identifier: Apache-2.0
"""Layers: small classes that bind weights from a checkpoint and add nodes to the graph."""

from poptransformer.layers.attention import Attention
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding import Embedding
from poptransformer.layers.linear import Conv1D, Linear
from poptransformer.layers.lm_head import LMHead
from poptransformer.layers.mlp import MLP, GatedMLP
from poptransformer.layers.norm import LayerNorm, RMSLayerNorm
from poptransformer.layers.rotary import RotaryEmbedding

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
]
