# SPDX-License-Identifier: Apache-2.0
"""Linear layers in the two layouts that Hugging Face checkpoints use."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.parallel import Strategy, strategy_of, take


class Linear(BaseLayer):
    """`y = x @ weight.T + bias` with `weight` `[output_size, input_size]` (torch.nn.Linear).

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        input_size: columns of the input.
        output_size: columns of the output.
        use_bias: whether the checkpoint holds a bias.
        strategy: how replicas share the weight, see `poptransformer.parallel`: `identity`, `start`, `end`, or an object
            such as `FusedQKV(num_heads, head_dim)`.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        input_size: int,
        output_size: int,
        use_bias: bool = True,
        strategy: Strategy | str = "identity",
    ) -> None:
        super().__init__(context, name)
        self.input_size = input_size
        self.output_size = output_size
        self.use_bias = use_bias
        self.strategy = strategy_of(strategy)

    def load_weight(self) -> np.ndarray:
        """Returns the weight as the graph multiplies by it, `[input_size, output_size]`."""
        return self.get_param_from_state_dict(self.key("weight"), [self.output_size, self.input_size]).T

    def load_bias(self) -> np.ndarray:
        """Returns the bias `[output_size]`."""
        return self.get_param_from_state_dict(self.key("bias"), [self.output_size])

    def collect_bind_layer_weights(self) -> None:
        inputs = self.strategy.inputs(self.build, self.input_size)
        outputs = self.strategy.outputs(self.build, self.output_size)
        self.weight_id = self.add_initialized_input_tensor(
            take(self.load_weight(), inputs, outputs), self.key("weight")
        )
        if self.use_bias:
            bias = take(self.load_bias(), outputs)
            if self.strategy.is_sum and self.build.replica > 0:
                bias = np.zeros_like(bias)  # one replica adds it for all
            self.bias_id = self.add_initialized_input_tensor(bias, self.key("bias"))

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[..., input_size]` to `[..., output_size]`, or to the replica's share where the strategy divides it."""
        with graph.nameScope(self.context):
            y = ops.matmul(graph, x, self.weight_id)
            y = ops.add(graph, y, self.bias_id) if self.use_bias else y
            return self.strategy.combine(graph, y, self.build)


class Conv1D(Linear):
    """GPT-2's linear layer, whose weight is stored `[input_size, output_size]` (transformers Conv1D)."""

    def load_weight(self) -> np.ndarray:
        return self.get_param_from_state_dict(self.key("weight"), [self.input_size, self.output_size])
