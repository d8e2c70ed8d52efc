# SPDX-License-Identifier: Apache-2.0
"""The weight matrices of a graph: what they are called and who reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from poptransformer.graph import DOMAIN, WeightTensor

LOOKUPS = ("Gather", "Slice")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight `[N, K]` and the nodes that read it.

    Attributes:
        value: the initializer.
        tensor: its fp32 tensor over the checkpoint's array.
        products: `Linear` nodes whose weight it is.
        lookups: `Gather` nodes that pick rows or columns of it, and `Slice` nodes.
        others: all other nodes that read it.
    """

    value: ir.Value
    tensor: WeightTensor
    products: tuple[ir.Node, ...]
    lookups: tuple[ir.Node, ...]
    others: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The initializer's name."""
        return str(self.value.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a recipe's pattern may match: the initializer's, and one for each layer that multiplies by it.

        So a tied table goes by the head's name, `lm_head.weight`, too.
        """
        layers = (str(node.name).rpartition("/")[0].replace("/", ".") for node in self.products)
        return tuple(dict.fromkeys([self.name, *(f"{layer}.weight" for layer in layers if layer)]))

    @property
    def takes_half(self) -> bool:
        """Whether all that read it can read 16-bit floats: products, and lookups followed by a cast."""
        return not self.others

    @property
    def can_be_packed(self) -> bool:
        """Whether all that read it are products and lookups of whole rows."""
        return not self.others and all(_picks_rows(node) for node in self.lookups)


def matrices(graph: ir.Graph) -> Iterator[Matrix]:
    """Yields the fp32 weight matrices of a graph."""
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if not isinstance(tensor, WeightTensor) or tensor.array.ndim != 2 or tensor.dtype != ir.DataType.FLOAT:
            continue
        found: dict[str, list[ir.Node]] = {"products": [], "lookups": [], "others": []}
        for use in value.uses():
            found[_kind(use.node, use.idx)].append(use.node)
        yield Matrix(value, tensor, **{kind: tuple(nodes) for kind, nodes in found.items()})


def _kind(node: ir.Node, index: int) -> str:
    if (node.domain, node.op_type, index) == (DOMAIN, "Linear", 1):
        return "products"
    is_lookup = node.domain == "" and node.op_type in LOOKUPS and index == 0
    return "lookups" if is_lookup else "others"


def _picks_rows(lookup: ir.Node) -> bool:
    axis = lookup.attributes.get("axis")
    return lookup.op_type == "Gather" and (axis is None or axis.as_int() == 0)
