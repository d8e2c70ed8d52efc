# SPDX-License-Identifier: Apache-2.0
"""Normalisation layers."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer


class LayerNorm(BaseLayer):
    """Layer normalisation over the last axis (torch.nn.LayerNorm).

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        input_size: size of the last axis.
        eps: added to the variance.
        use_bias: whether the checkpoint holds a bias.
    """

    def __init__(
        self, context: str | None, name: str | None, input_size: int, eps: float = 1e-5, use_bias: bool = True
    ) -> None:
        super().__init__(context, name)
        self.input_size = input_size
        self.eps = eps
        self.use_bias = use_bias
        self.bias_id: ir.Value | None = None

    def collect_bind_layer_weights(self) -> None:
        weight = self.get_param_from_state_dict(self.key("weight"), [self.input_size])
        self.weight_id = self.add_initialized_input_tensor(weight, self.key("weight"))
        if self.use_bias:
            bias = self.get_param_from_state_dict(self.key("bias"), [self.input_size])
            self.bias_id = self.add_initialized_input_tensor(bias, self.key("bias"))

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Normalises `[..., input_size]`."""
        with graph.nameScope(self.context):
            return ops.layer_norm(graph, x, self.weight_id, self.bias_id, self.eps)


class RMSLayerNorm(BaseLayer):
    """Root-mean-square normalisation over the last axis (transformers LlamaRMSNorm)."""

    def __init__(self, context: str | None, name: str | None, input_size: int, eps: float = 1e-6) -> None:
        super().__init__(context, name)
        self.input_size = input_size
        self.eps = eps

    def collect_bind_layer_weights(self) -> None:
        weight = self.get_param_from_state_dict(self.key("weight"), [self.input_size])
        self.weight_id = self.add_initialized_input_tensor(weight, self.key("weight"))

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Normalises `[..., input_size]`."""
        with graph.nameScope(self.context):
            return ops.rms_norm(graph, x, self.weight_id, self.eps)
