# SPDX-License-Identifier: Apache-2.0
"""The pieces that a fused product is made of, as they lie in a graph: products, activations, norms, residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.match import attributes_are, is_op, is_vector, is_weight, only_user, other_input, same_shape


@dataclasses.dataclass
class Product:
    """A product with a weight, and the bias that is added to it.

    Attributes:
        weight: weight, scales, offsets and bias as `FusedLinear` takes them; None for what there is not.
        format: `float`, or the format of a packed weight.
        columns: N.
        nodes: the product, and the sum with the bias where that is a node of its own.
    """

    weight: list[ir.Value | None]
    format: str
    columns: int
    nodes: list[ir.Node]

    @property
    def x(self) -> ir.Value:
        """The rows that are multiplied."""
        return self.nodes[0].inputs[0]  # type: ignore[return-value]

    @property
    def value(self) -> ir.Value:
        """What comes out."""
        return self.nodes[-1].outputs[0]


def find_product(node: ir.Node) -> Product | None:
    """Returns the product that begins at `node`, with its bias."""
    product = _linear(node) or _quantized_linear(node)
    if product is None or product.weight[3] is not None:
        return product
    user = only_user(product.value)
    bias = other_input(user, product.value) if user is not None and is_op(user, "Add") else None
    if is_vector(bias, product.columns):
        product.weight[3] = bias
        product.nodes.append(user)  # type: ignore[arg-type]
    return product


def _linear(node: ir.Node) -> Product | None:
    if not is_op(node, "Linear", DOMAIN):
        return None
    x, weight = node.inputs[:2]
    if x is None or weight is None or not is_weight(weight) or weight.shape is None or len(node.inputs) > 2:
        return None
    columns = weight.shape[0]
    return Product([weight, None, None, None], "float", columns, [node]) if isinstance(columns, int) else None


def _quantized_linear(node: ir.Node) -> Product | None:
    if not is_op(node, "QuantizedLinear", DOMAIN) or not attributes_are(node, {"format": None, "columns": None}):
        return None
    x, *weights = node.inputs
    weights += [None] * (4 - len(weights))
    if x is None or not all(value is None or is_weight(value) for value in weights):
        return None
    format, columns = node.attributes["format"].as_string(), node.attributes["columns"].as_int()
    return Product(weights, format, columns, [node])


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


@dataclasses.dataclass
class Group:
    """Nodes that one `FusedLinear` replaces.

    Attributes:
        products: one to three of them, of the same x.
        tail: the nodes after the products: activation, product with the gate, sum with the residual.
        activation: applied to the first product.
        gated: the first product times the second is the only output.
        has_residual: whether the last node of the tail is a sum with a residual.
        norm: the node whose only readers are the products.
    """

    products: list[Product]
    tail: list[ir.Node] = dataclasses.field(default_factory=list)
    activation: str = "none"
    gated: bool = False
    has_residual: bool = False
    norm: ir.Node | None = None

    @property
    def nodes(self) -> list[ir.Node]:
        """All of them; the norm first, the last of a tail at the end."""
        head = [] if self.norm is None else [self.norm]
        return [*head, *(node for product in self.products for node in product.nodes), *self.tail]

    @property
    def outputs(self) -> Sequence[ir.Value]:
        """The values that are read elsewhere."""
        return [self.tail[-1].outputs[0]] if self.tail else [product.value for product in self.products]

    @property
    def residual(self) -> ir.Value | None:
        """What is added to the only output."""
        if not self.has_residual:
            return None
        before = self.tail[-2].outputs[0] if len(self.tail) > 1 else self.products[0].value
        return other_input(self.tail[-1], before)

    def is_more_than_a_product(self) -> bool:
        """Whether there is anything to fuse."""
        return len(self.nodes) > 1
