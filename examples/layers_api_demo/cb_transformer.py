# SPDX-License-Identifier: Apache-2.0
"""The model of `pytorch_transformer.py` after its conversion: other imports, and one layer for the embeddings."""

from __future__ import annotations

import math

from torch import Tensor, nn

from poptransformer.nn import EmbeddingLayer, TransformerEncoder, TransformerEncoderLayer


class TransformerModel(nn.Module):
    """Embedding with positions, encoder layers, and a linear layer that gives logits."""

    def __init__(
        self,
        ntoken: int,
        d_model: int,
        nhead: int,
        d_hid: int,
        nlayers: int,
        dropout: float = 0.5,
        activation: str = "gelu",
        max_len: int = 10,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.encoder = EmbeddingLayer(
            vocab_size=ntoken,
            embedding_size=d_model,
            position_embedding_type="fixed",
            max_position_embeddings=max_len,
        )
        layer = TransformerEncoderLayer(d_model, nhead, d_hid, dropout, batch_first=True, activation=activation)
        self.transformer_encoder = TransformerEncoder(layer, nlayers)
        self.decoder = nn.Linear(d_model, ntoken)
        self.init_weights()

    def init_weights(self) -> None:
        """Draws the last weights; the layers draw their own."""
        self.decoder.bias.data.zero_()
        self.decoder.weight.data.uniform_(-0.1, 0.1)

    def forward(self, src: Tensor, src_mask: Tensor) -> Tensor:
        """Returns logits [B, L, V] for ids [B, L] and a mask [L, L] to add."""
        x = self.encoder(src) * math.sqrt(self.d_model)
        x = self.transformer_encoder(x, src_mask)
        return self.decoder(x)
