# SPDX-License-Identifier: Apache-2.0
"""A language model of plain torch.nn layers, to begin with. `cb_transformer.py` is the same one after the conversion.

It follows PyTorch's tutorial on nn.Transformer, with what the layers API asks for: batches come first, also in the
positions, and the mask has a number in place of minus infinity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import Embedding, TransformerEncoder, TransformerEncoderLayer


class TransformerModel(nn.Module):
    """Embedding, positions, encoder layers, and a linear layer that gives logits."""

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
        self.encoder = Embedding(ntoken, d_model)
        self.pos_encoder = PositionalEncoding(d_model, dropout, max_len)
        layer = TransformerEncoderLayer(d_model, nhead, d_hid, dropout, batch_first=True, activation=activation)
        self.transformer_encoder = TransformerEncoder(layer, nlayers)
        self.decoder = nn.Linear(d_model, ntoken)
        self.init_weights()

    def init_weights(self) -> None:
        """Draws the first and the last weights."""
        self.encoder.weight.data.uniform_(-0.1, 0.1)
        self.decoder.bias.data.zero_()
        self.decoder.weight.data.uniform_(-0.1, 0.1)

    def forward(self, src: Tensor, src_mask: Tensor) -> Tensor:
        """Returns logits [B, L, V] for ids [B, L] and a mask [L, L] to add."""
        x = self.encoder(src) * math.sqrt(self.d_model)
        x = self.pos_encoder(x)
        x = self.transformer_encoder(x, src_mask.to(x.dtype))
        return self.decoder(x)


class PositionalEncoding(nn.Module):
    """Sines and cosines of the position, added to the embeddings."""

    def __init__(self, d_model: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len).unsqueeze(1)
        frequencies = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, 1, d_model)
        pe[:, 0, 0::2] = torch.sin(position * frequencies)
        pe[:, 0, 1::2] = torch.cos(position * frequencies)
        self.register_buffer("pe", pe.transpose(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Adds the first L positions to [B, L, D]."""
        return self.dropout(x + self.pe[:, : x.size(1)])


def generate_square_subsequent_mask(size: int, device: torch.device | str | None = None) -> Tensor:
    """Returns a mask [L, L] to add: float16's lowest number above the diagonal. A layer casts it to its own type."""
    lowest = torch.finfo(torch.float16).min
    return torch.triu(torch.full((size, size), lowest, dtype=torch.float16, device=device), diagonal=1)
