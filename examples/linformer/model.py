# SPDX-License-Identifier: Apache-2.0
"""BERT without next sentence prediction, with Linformer's attention: the module, its loss and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import graph as inference_graph
import onnx_ir as ir
import torch
from torch import Tensor, nn

from poptransformer.graph import Graph
from poptransformer.nn import EmbeddingLayer, LinformerEncoder, LinformerEncoderLayer
from poptransformer.nn.feed_forward import get_activation
from poptransformer.nn.initializers import create_initializer
from poptransformer.training import AccuracyMetric, PerplexityMetric, PyTorchBaseModel


def pooling(matrix: Tensor) -> Tensor:
    """Fills E or F `[k, n]` so that each projected key begins as the mean of n/k neighbours.

    One of the projections of the paper's section 4. From there, what a word's neighbours tell is learned sooner.
    """
    k, n = matrix.shape
    window = torch.arange(n, device=matrix.device) * k // n
    is_inside = (window == torch.arange(k, device=matrix.device)[:, None]).to(matrix.dtype)
    return matrix.copy_(is_inside / is_inside.sum(1, keepdim=True))


class Decoder(nn.Module):
    """Scores of all word pieces, by a table of its own or by that of the embeddings."""

    def __init__(self, vocab_size: int, hidden_size: int, use_bias: bool, is_tied: bool, initializer: Any) -> None:
        super().__init__()
        self.weight = None if is_tied else nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if use_bias else None
        if self.weight is not None:
            create_initializer(initializer)(self.weight.data)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Maps `[P, D]` to `[P, V]`."""
        return nn.functional.linear(x, table if self.weight is None else self.weight, self.bias)


class LinformerModel(nn.Module):
    """Logits of word pieces at chosen places.

    Args:
        params: the section `model`, complete.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        size, eps, initializer = params["hidden_size"], params["layer_norm_epsilon"], params["initializer"]
        projections = params["projection_initializer"]
        drawn = dict.fromkeys(
            ("embeddings_initializer", "position_embeddings_initializer", "segment_embeddings_initializer"), initializer
        )
        self.embedding = EmbeddingLayer(**inference_graph.embedding_arguments(params), **drawn)
        self.embedding_norm = nn.LayerNorm(size, eps)
        self.dropout = nn.Dropout(params["dropout_rate"])
        layer = LinformerEncoderLayer(
            **inference_graph.layer_arguments(params),
            dropout=params["dropout_rate"],
            attention_dropout_rate=params["attention_dropout_rate"],
            attention_initializer=initializer,
            ffn_initializer=initializer,
            projection_initializer=pooling if projections == "pooling" else projections,
        )
        norm = nn.LayerNorm(size, eps) if params["use_pre_normalization"] else None
        self.encoder = LinformerEncoder(layer, params["num_hidden_layers"], norm)
        self.transform = nn.Linear(size, size, params["use_ffn_bias_in_mlm"])
        create_initializer(initializer)(self.transform.weight.data)
        if self.transform.bias is not None:
            nn.init.zeros_(self.transform.bias)
        self.nonlinearity = get_activation(params["mlm_nonlinearity"])
        self.norm = nn.LayerNorm(size, eps)
        self.decoder = Decoder(
            params["vocab_size"], size, params["use_output_bias_in_mlm"], params["share_embedding_weights"], initializer
        )

    def forward(
        self,
        input_ids: Tensor,
        places: Tensor,
        input_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Returns logits `[P, V]`.

        Args:
            input_ids: `[B, L]`, or `[1, T]` of all rows one after the other.
            places: `[P]`, which of all B*L or T tokens to predict.
            input_mask: `[B, L]`, 0 for padding.
            segment_ids: like `input_ids`.
            position_ids: like `input_ids`; None counts.
            lengths: tokens of each packed row.
        """
        x = self.embedding(input_ids, position_ids, segment_ids)
        x = self.dropout(self.embedding_norm(x))
        x = self.encoder(x, None if input_mask is None else input_mask == 0, lengths)
        x = self.transform(x.flatten(0, 1)[places])
        return self.decoder(self.norm(self.nonlinearity(x)), self.embedding.word_embeddings.weight)


class LinformerForMaskedLM(PyTorchBaseModel):
    """Learns to fill in masked word pieces.

    Args:
        params: the whole params file, completed by `utils.set_defaults`.
        device: where the module shall be.
    """

    def __init__(self, params: dict[str, Any], device: torch.device | None = None) -> None:
        self.model_params = params["model"]
        self.accuracy = AccuracyMetric("eval/accuracy_masked_lm")
        self.perplexity = PerplexityMetric("eval/mlm_perplexity")
        super().__init__(params=params, model=LinformerModel(params["model"]), device=device)

    def __call__(self, data: dict[str, Tensor]) -> Tensor:
        """Returns the loss of a batch; with `use_vsl` no padding is computed, and it is the same."""
        is_predicted = data["masked_lm_weights"] > 0
        labels, weights = data["masked_lm_ids"][is_predicted], data["masked_lm_weights"][is_predicted]
        logits = self.model(**(self._packed(data) if self.model_params["use_vsl"] else self._padded(data)))
        if not self.model.training:
            self.accuracy.update(labels, logits.argmax(-1))
            self.perplexity.update(labels, logits)
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        by = self.model_params["mlm_loss_scaling"]
        count = max(1, len(labels)) if by == "num_masked" else len(data["input_ids"])
        return (losses * weights).sum() / count * self.model_params["mlm_loss_weight"]

    def _padded(self, data: dict[str, Tensor]) -> dict[str, Any]:
        rows = torch.arange(len(data["input_ids"]), device=data["input_ids"].device)[:, None]
        places = rows * data["input_ids"].shape[1] + data["masked_lm_positions"]
        return {
            "input_ids": data["input_ids"],
            "places": places[data["masked_lm_weights"] > 0],
            "input_mask": data["input_mask"],
            "segment_ids": data.get("segment_ids"),
        }

    def _packed(self, data: dict[str, Tensor]) -> dict[str, Any]:
        """The same without what the pads say is padding."""
        input_ids, segments = data["input_ids"], data.get("segment_ids")
        is_token = input_ids != self.model_params["input_pad_id"]
        if segments is not None:
            segments = segments[segments != self.model_params["segment_pad_id"]][None]
        lengths = is_token.sum(1)
        starts = lengths.cumsum(0) - lengths
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        places = starts[:, None] + data["masked_lm_positions"]
        return {
            "input_ids": input_ids[is_token][None],
            "places": places[data["masked_lm_positions"] != self.model_params["mlm_pad_id"]],
            "segment_ids": segments,
            "position_ids": positions[is_token][None],
            "lengths": lengths.tolist(),
        }

    def build_graph(self, graph: Graph) -> Mapping[str, ir.Value]:
        """The graph for onnxruntime."""
        return inference_graph.build_graph(graph, self.model_params)
