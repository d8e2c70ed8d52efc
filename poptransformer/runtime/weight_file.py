# SPDX-License-Identifier: Apache-2.0
"""`weights.bin` of a saved model: written tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from poptransformer.runtime.ort_session import large_weights

if TYPE_CHECKING:
    import onnx_ir as ir

_PAGE = 4096


def weights_to_write(model: ir.Model, is_shared: bool) -> dict[str, ir.TensorProtocol]:
    """Returns the weights that go to the file, by name.

    Args:
        model: the model.
        is_shared: whether other replicas have the same graph; then all that tells them apart goes to the file, however
            small.
    """
    if not is_shared:
        return large_weights(model)
    initializers = model.graph.initializers.items()
    return {
        name: value.const_value
        for name, value in initializers
        if value.const_value is not None and not name.rpartition("/")[2].startswith("const_")
    }


def write_weights(tensors: Mapping[str, ir.TensorProtocol], path: Path) -> dict[str, ir.TensorProtocol]:
    """Writes tensors one by one, each on a page boundary; returns references to them."""
    import onnx_ir as ir

    references: dict[str, ir.TensorProtocol] = {}
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            file.seek(-file.tell() % _PAGE, 1)
            references[name] = ir.ExternalTensor(
                path.name, file.tell(), tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
            file.write(tensor.numpy().reshape(-1).view(np.uint8).data)
    return references
