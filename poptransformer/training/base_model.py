# SPDX-License-Identifier: Apache-2.0
"""`PyTorchBaseModel`: a torch module, its loss, its metrics, and its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from poptransformer.errors import ConfigError
from poptransformer.training.metrics import Metric

if TYPE_CHECKING:
    import onnx_ir as ir

    from poptransformer.graph import Graph


class PyTorchBaseModel:
    """A model as `run` takes it: called with a batch, it returns the loss.

    Subclasses make the module, pass it on, and define `__call__`; `build_graph` where the trained model shall run
    outside of torch. Metrics (`poptransformer.training.metrics`) are attributes; `__call__` updates them while
    `self.model.training` is false.

    Args:
        params: the whole params file.
        model: the module that learns.
        device: where it shall be; None leaves it where it is.
    """

    def __init__(self, params: Mapping[str, Any], model: nn.Module, device: torch.device | str | None = None) -> None:
        self.params = params
        self.model = model
        if device is not None and not any(weight.is_meta for weight in model.parameters()):
            self.model.to(device)

    def __call__(self, data: Any) -> torch.Tensor:
        """Returns the loss of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, data), which returns the loss.")

    def build_graph(self, graph: Graph) -> Mapping[str, ir.Value]:
        """Adds the model's inputs and layers to a graph; returns its outputs by name.

        Layers of `poptransformer.layers` with the names of the module's find its weights.
        """
        raise ConfigError(
            f"{type(self).__name__} has no graph: define build_graph(self, graph) with the layers of "
            "poptransformer.layers to validate or compile it."
        )

    @property
    def metrics(self) -> dict[str, Metric]:
        """The model's metrics by name."""
        return {value.name: value for value in vars(self).values() if isinstance(value, Metric)}

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        weight = next(self.model.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device
