# SPDX-License-Identifier: Apache-2.0
"""Feed-forward blocks."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from poptransformer import ops
from poptransformer.build import check_choice
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.linear import Conv1D, Linear


def _tanh_gelu(graph: Graph, x: ir.Value) -> ir.Value:
    return ops.gelu(graph, x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Graph, ir.Value], ir.Value]] = {
    "gelu": ops.gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": ops.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "silu": ops.swish,
    "swish": ops.swish,
    "tanh": ops.tanh,
}


def activation(name: str) -> Callable[[Graph, ir.Value], ir.Value]:
    """Returns the activation function of that Hugging Face name."""
    check_choice("activation", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]


class MLP(BaseLayer):
    """Two linear layers with an activation between them, GPT-2's names and layout.

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        input_size: columns of input and output.
        hidden_size: columns in between.
        act_fn: Hugging Face name of the activation.
    """

    def __init__(self, context: str | None, name: str | None, input_size: int, hidden_size: int, act_fn: str) -> None:
        super().__init__(context, name)
        self.act_fn = activation(act_fn)
        self.c_fc = Conv1D(self.context, "c_fc", input_size, hidden_size, strategy="start")
        self.c_proj = Conv1D(self.context, "c_proj", hidden_size, input_size, strategy="end")

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[..., input_size]` to the same shape."""
        with graph.nameScope(self.context):
            return self.c_proj(graph, self.act_fn(graph, self.c_fc(graph, x)))


class GatedMLP(BaseLayer):
    """`down(act(gate(x)) * up(x))`, Llama's names and layout (transformers LlamaMLP)."""

    def __init__(
        self,
        context: str | None,
        name: str | None,
        input_size: int,
        hidden_size: int,
        act_fn: str = "silu",
        use_bias: bool = False,
    ) -> None:
        super().__init__(context, name)
        self.act_fn = activation(act_fn)
        self.gate_proj = Linear(self.context, "gate_proj", input_size, hidden_size, use_bias, "start")
        self.up_proj = Linear(self.context, "up_proj", input_size, hidden_size, use_bias, "start")
        self.down_proj = Linear(self.context, "down_proj", hidden_size, input_size, use_bias, "end")

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[..., input_size]` to the same shape."""
        with graph.nameScope(self.context):
            gate = self.act_fn(graph, self.gate_proj(graph, x))
            return self.down_proj(graph, ops.mul(graph, gate, self.up_proj(graph, x)))
