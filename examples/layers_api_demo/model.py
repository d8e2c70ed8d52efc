# SPDX-License-Identifier: Apache-2.0
"""The model as `run` takes it: loss, accuracy, and the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import graph as inference_graph
import onnx_ir as ir
import torch
from cb_transformer import TransformerModel
from pytorch_transformer import generate_square_subsequent_mask

from poptransformer.graph import Graph
from poptransformer.nn import GPTLMHeadModelLoss
from poptransformer.training import AccuracyMetric, PyTorchBaseModel


class TransformerBaseModel(PyTorchBaseModel):
    """Learns to continue the alphabet."""

    def __init__(self, params: dict[str, Any], device: torch.device | None = None) -> None:
        model_params = params["model"]
        vocab_size = model_params["vocab_size"]
        model = TransformerModel(
            vocab_size,
            model_params["embedding_size"],
            model_params["num_heads"],
            model_params["hidden_size"],
            model_params["num_hidden_layers"],
            model_params["dropout"],
            model_params["nonlinearity"],
            model_params["seq_len"],
        )
        self.loss_fn = GPTLMHeadModelLoss(vocab_size, loss_scaling="batch_size", loss_weight=1.0 / vocab_size)
        self.accuracy = AccuracyMetric("eval/accuracy")
        super().__init__(params=params, model=model, device=device)

    def __call__(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the loss of a batch."""
        input_ids, target_ids, attention_mask = data["input_ids"], data["target_ids"], data["attention_mask"]
        mask = generate_square_subsequent_mask(input_ids.shape[1], input_ids.device)
        logits = self.model(input_ids, mask)
        if not self.model.training:
            self.accuracy.update(target_ids, logits.argmax(-1), attention_mask)
        return self.loss_fn(logits, target_ids, attention_mask)

    def build_graph(self, graph: Graph) -> Mapping[str, ir.Value]:
        """The graph for onnxruntime."""
        return inference_graph.build_graph(graph, self.params["model"])
