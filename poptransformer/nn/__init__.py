# SPDX-License-Identifier: Apache-2.0
"""Transformer layers in PyTorch, to train with; `poptransformer.layers` has graph layers of the same names.

Arguments, defaults and state dict keys are those of the layers API of Cerebras Model Zoo 2.2. A graph layer of the
same name reads the state dict of a trained one. All tensors are batch first: B rows, L query tokens, S key tokens,
N heads, H head dimension, D features. In masks, True or 1 means masked.
"""

from poptransformer.errors import PopTransformerError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise PopTransformerError("poptransformer.nn needs PyTorch: pip install -r requirements-train.txt") from error

from poptransformer.nn.attention import MultiheadAttention
from poptransformer.nn.convert import as_state_dict, from_torch_nn, layer_arguments, layers_from_torch_nn
from poptransformer.nn.decoder import TransformerDecoder, TransformerDecoderLayer
from poptransformer.nn.embedding import EmbeddingLayer
from poptransformer.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from poptransformer.nn.feed_forward import FeedForwardNetwork
from poptransformer.nn.initializers import INITIALIZERS, create_initializer
from poptransformer.nn.language_model import LanguageModel
from poptransformer.nn.linformer import LinformerAttention, LinformerEncoder, LinformerEncoderLayer
from poptransformer.nn.losses import GPTLMHeadModelLoss
from poptransformer.nn.masks import (
    create_2D_autoregressive_mask,
    create_2D_full_mask,
    create_autoregressive_mask,
    create_broadcasted_autoregressive_mask,
    get_extended_attention_mask,
    make_key_padding_mask_broadcastable,
    make_sparse_mask_broadcastable,
)
from poptransformer.nn.positions import (
    AlibiPositionEmbeddingLayer,
    FixedPositionEmbeddingLayer,
    LearnedPositionEmbeddingLayer,
    RelativePositionEmbeddingLayer,
    RotaryPositionEmbeddingHelper,
)
from poptransformer.nn.transformer import Transformer

__all__ = [
    "INITIALIZERS",
    "AlibiPositionEmbeddingLayer",
    "EmbeddingLayer",
    "FeedForwardNetwork",
    "FixedPositionEmbeddingLayer",
    "GPTLMHeadModelLoss",
    "LanguageModel",
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
    "as_state_dict",
    "create_2D_autoregressive_mask",
    "create_2D_full_mask",
    "create_autoregressive_mask",
    "create_broadcasted_autoregressive_mask",
    "create_initializer",
    "from_torch_nn",
    "get_extended_attention_mask",
    "layer_arguments",
    "layers_from_torch_nn",
    "make_key_padding_mask_broadcastable",
    "make_sparse_mask_broadcastable",
]
