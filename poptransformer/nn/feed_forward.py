# SPDX-License-Identifier: Apache-2.0
"""Feed-forward networks: linear layers with activations and dropout between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from poptransformer.build import check_choice
from poptransformer.errors import ConfigError
from poptransformer.nn.initializers import InitializerSpec, create_initializer

Activation = str | Callable[[Tensor], Tensor]


def _tanh_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


# The names are those of `poptransformer.layers`.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": nn.functional.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": nn.functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
}


def get_activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Returns the function of that name; a function is returned as it is."""
    if callable(activation):
        return activation
    check_choice("activation", activation, tuple(ACTIVATIONS))
    return ACTIVATIONS[activation]


class SingleFeedForwardLayer(nn.Module):
    """A linear layer, its activation and dropout."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = False,
        activation: Activation | None = None,
        dropout: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(in_features, out_features, use_bias, device)
        self.act = get_activation(activation) if activation else None
        self.dropout_layer = nn.Dropout(dropout or 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`."""
        x = self.linear_layer(x)
        return self.dropout_layer(x if self.act is None else self.act(x))


class FeedForwardNetwork(nn.Module):
    """A stack of linear layers, each with its activation and dropout.

    Args:
        input_unit: columns of the input.
        layers_units: columns that each layer gives.
        layers_activation: activation of each layer; None for none.
        layers_dropout_rates: dropout of each layer; None for none.
        use_bias: biases of all layers.
        kernel_initializer: of the weights; see `create_initializer`.
        bias_initializer: of the biases.
        output_layer_initializer: of the last layer's weight, if another one.
        device: where parameters lie.
    """

    def __init__(
        self,
        input_unit: int,
        layers_units: Sequence[int],
        layers_activation: Sequence[Activation | None] | None = None,
        layers_dropout_rates: Sequence[float | None] | None = None,
        use_bias: bool = False,
        kernel_initializer: InitializerSpec = "xavier_uniform",
        bias_initializer: InitializerSpec = "zeros",
        output_layer_initializer: InitializerSpec | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        count = len(layers_units)
        activations = list(layers_activation or [None] * count)
        rates = list(layers_dropout_rates or [None] * count)
        if not count or {len(activations), len(rates)} != {count}:
            raise ConfigError(
                f"layers_units, layers_activation and layers_dropout_rates must be of one length of at least 1, found "
                f"{count}, {len(activations)} and {len(rates)}."
            )
        sizes = zip([input_unit, *layers_units], layers_units, activations, rates, strict=False)
        self.ffn = nn.ModuleList(
            SingleFeedForwardLayer(size, units, use_bias, activation, rate, device)
            for size, units, activation, rate in sizes
        )
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.output_layer_initializer = output_layer_initializer or kernel_initializer
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        for index, layer in enumerate(self.ffn):
            is_last = index == len(self.ffn) - 1
            initializer = self.output_layer_initializer if is_last else self.kernel_initializer
            create_initializer(initializer)(layer.linear_layer.weight.data)  # type: ignore[union-attr, arg-type]
            if layer.linear_layer.bias is not None:  # type: ignore[union-attr]
                create_initializer(self.bias_initializer)(layer.linear_layer.bias.data)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., input_unit]` to `[..., layers_units[-1]]`."""
        for layer in self.ffn:
            x = layer(x)
        return x
