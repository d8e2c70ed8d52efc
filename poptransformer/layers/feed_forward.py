# SPDX-License-Identifier: Apache-2.0
"""Feed-forward networks of the layers API, as graphs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.linear import Linear
from poptransformer.layers.mlp import activation


class FeedForwardNetwork(BaseLayer):
    """A stack of linear layers, each with its activation; see `poptransformer.nn.FeedForwardNetwork`.

    Replicas divide the layers two by two: they share the columns between a first and a second one.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        input_unit: columns of the input.
        layers_units: columns that each layer gives.
        layers_activation: name of each layer's activation; None for none.
        use_bias: biases of all layers.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        input_unit: int,
        layers_units: Sequence[int],
        layers_activation: Sequence[str | None] | None = None,
        use_bias: bool = False,
    ) -> None:
        super().__init__(context, name)
        names = list(layers_activation or [None] * len(layers_units))
        if not layers_units or len(names) != len(layers_units):
            raise ConfigError(
                f"layers_units and layers_activation must be of one length of at least 1, found {len(layers_units)} "
                f"and {len(names)}."
            )
        self.activations = [None if name is None else activation(name) for name in names]
        paired = len(layers_units) // 2 * 2
        self.layers = [
            Linear(
                *(self.context, f"ffn.{index}.linear_layer", size, units, use_bias),
                strategy=("start", "end")[index % 2] if index < paired else "identity",
            )
            for index, (size, units) in enumerate(zip([input_unit, *layers_units], layers_units, strict=False))
        ]

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        """Maps `[..., input_unit]` to `[..., layers_units[-1]]`."""
        with graph.nameScope(self.context):
            for layer, function in zip(self.layers, self.activations, strict=True):
                x = layer(graph, x)
                x = x if function is None else function(graph, x)
            return x
