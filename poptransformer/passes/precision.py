# SPDX-License-Identifier: Apache-2.0
"""Chooses the dtype that weights are stored in; arithmetic stays fp32."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import onnx_ir as ir

from poptransformer.graph import WeightTensor
from poptransformer.passes.matrices import LOOKUPS, Matrix, matrices

logger = logging.getLogger(__name__)

HALF = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def store_weights(model: ir.Model, precision: str) -> None:
    """Sets the stored dtype of every weight matrix.

    Args:
        model: the model to change; weights must already be `Linear`'s.
        precision: `fp32`, `fp16` or `bf16`, see `store_matrix`.
    """
    if precision in HALF:
        logger.info("casting model to %s", precision)
    for matrix in matrices(model.graph):
        store_matrix(matrix, precision)


def store_matrix(matrix: Matrix, precision: str) -> None:
    """Sets the stored dtype of one weight matrix.

    `fp32` keeps the checkpoint's own dtype where it is a 16-bit float: widening it loses nothing, so the kernel does
    it on the fly and the bytes stay where they are. `fp16` and `bf16` round to that dtype. Vectors (norms, biases)
    are always fp32.

    Args:
        matrix: the weight.
        precision: `fp32`, `fp16` or `bf16`.
    """
    stored = HALF.get(precision, matrix.tensor.array.dtype)
    if stored != np.float32 and matrix.takes_half:
        _store(matrix.value, matrix.tensor, stored)


def _store(value: ir.Value, tensor: WeightTensor, stored: np.dtype) -> None:
    dtype = ir.DataType.from_numpy(stored)
    value.const_value = WeightTensor(tensor.array, dtype, value.name)
    value.dtype = dtype
    for use in list(value.uses()):
        if use.node.op_type in LOOKUPS:
            _widen_output(use.node, dtype)


def _widen_output(node: ir.Node, stored: ir.DataType) -> None:
    """Casts the output of a lookup in a table of `stored` to fp32 for everything after it, in a loop's body too."""
    narrow = node.outputs[0]
    cast = ir.node("Cast", [narrow], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/Cast")
    cast.metadata_props.update(node.metadata_props)
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = narrow.name, narrow.type, narrow.shape
    narrow.replace_all_uses_with(wide, replace_graph_outputs=True)
    cast.replace_input_with(0, narrow)
    narrow.name = f"{wide.name}_stored"
    narrow.type = ir.TensorType(stored)
    assert node.graph is not None
    node.graph.insert_after(node, cast)
