# SPDX-License-Identifier: Apache-2.0
"""The pieces that a fused product is made of, as they lie in a graph: products, activations, norms, residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.match import attributes_are, is_op, is_vector, is_weight, only_user, other_input, same_shape

FLOAT_FORMAT = "float"  # of a weight whose element type says it all
MAX_PIECES = 3
TILE = 16  # rows of a packed weight


@dataclasses.dataclass
class Product:
    """A product with a weight, the bias that is added to it, and the pieces that its columns are cut into.

    Attributes:
        weight: weight, scales, offsets and bias as `FusedLinear` takes them; None for what there is not.
        format: `float`, or the format of a packed weight.
        columns: of each piece.
        nodes: the product; the sum with the bias where that is a node of its own; the Split where there is one.
    """

    weight: list[ir.Value | None]
    format: str
    columns: list[int]
    nodes: list[ir.Node]

    @property
    def x(self) -> ir.Value:
        """The rows that are multiplied."""
        return self.nodes[0].inputs[0]  # type: ignore[return-value]

    @property
    def values(self) -> Sequence[ir.Value]:
        """What comes out: the pieces in order, one where nothing is cut."""
        return self.nodes[-1].outputs


def find_product(node: ir.Node) -> Product | None:
    """Returns the product that begins at `node`, with its bias and its pieces."""
    product = _linear(node) or _quantized_linear(node)
    if product is not None:
        if product.weight[3] is None:
            _take_bias(product)
        _take_split(product)
    return product


def _take_bias(product: Product) -> None:
    (value,) = product.values
    user = only_user(value)
    bias = other_input(user, value) if user is not None and is_op(user, "Add") else None
    if user is not None and is_vector(bias, product.columns[0]):
        product.weight[3] = bias
        product.nodes.append(user)


def _take_split(product: Product) -> None:
    """A packed weight can be cut between tiles of 16 columns only."""
    (value,) = product.values
    node = only_user(value)
    if node is None or not is_op(node, "Split") or len(node.outputs) > MAX_PIECES or value.shape is None:
        return
    axis = node.attributes.get("axis")
    if axis is None or axis.as_int() not in (-1, len(value.shape) - 1):
        return
    sizes = [piece.shape[-1] if piece.shape is not None else None for piece in node.outputs]
    columns = [size for size in sizes if isinstance(size, int)]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    known = given is None or (is_weight(given) and given.const_value is not None)
    aligned = product.format == FLOAT_FORMAT or not any(size % TILE for size in columns[:-1])
    if len(columns) == len(sizes) and sum(columns) == product.columns[0] and known and aligned:
        product.columns = columns
        product.nodes.append(node)


def _linear(node: ir.Node) -> Product | None:
    if not is_op(node, "Linear", DOMAIN):
        return None
    x, weight = node.inputs[:2]
    if x is None or weight is None or not is_weight(weight) or weight.shape is None or len(node.inputs) > 2:
        return None
    columns = weight.shape[0]
    return Product([weight, None, None, None], FLOAT_FORMAT, [columns], [node]) if isinstance(columns, int) else None


def _quantized_linear(node: ir.Node) -> Product | None:
    if not is_op(node, "QuantizedLinear", DOMAIN) or not attributes_are(node, {"format": None, "columns": None}):
        return None
    x, *weights = node.inputs
    weights += [None] * (4 - len(weights))
    if x is None or not all(value is None or is_weight(value) for value in weights):
        return None
    format, columns = node.attributes["format"].as_string(), node.attributes["columns"].as_int()
    return Product(weights, format, [columns], [node])


def activation_of(node: ir.Node | None) -> str | None:
    """Returns what `FusedLinear` calls the activation that `node` computes."""
    if node is None or node.domain:
        return None
    if node.op_type == "Gelu":
        approximate = node.attributes.get("approximate")
        return "gelu_tanh" if approximate is not None and approximate.as_string() == "tanh" else "gelu"
    if node.op_type == "Swish" and not attributes_are(node, {"alpha": 1.0}):
        return None
    return {"Swish": "silu", "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}.get(node.op_type)


def norm_of(node: ir.Node | None) -> str | None:
    """Returns what `FusedLinear` calls the normalisation over the last axis that `node` computes."""
    if node is None or node.domain or node.op_type not in ("RMSNormalization", "LayerNormalization"):
        return None
    x, *weights = node.inputs
    columns = x.shape[-1] if x is not None and x.shape is not None else None
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if not attributes_are(node, {"epsilon": None, "axis": -1, "stash_type": 1}) or used or not weights:
        return None
    if not all(value is None or is_vector(value, columns) for value in weights):
        return None
    return "rms" if node.op_type == "RMSNormalization" else "layer"


def residual_sum(value: ir.Value) -> ir.Node | None:
    """Returns the sum that is all `value` is for, where another value of the same shape is added to it."""
    user = only_user(value)
    if user is None or not is_op(user, "Add"):
        return None
    residual = other_input(user, value)
    if residual is None or not same_shape(value, residual) or not same_shape(value, user.outputs[0]):
        return None
    return user
