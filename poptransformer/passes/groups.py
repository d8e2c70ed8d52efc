# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a graph one fused product can stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from poptransformer.passes.match import is_op, only_user, other_input, placement
from poptransformer.passes.products import (
    MAX_PIECES,
    Product,
    activation_of,
    find_product,
    norm_of,
    residual_sum,
)


@dataclasses.dataclass
class Group:
    """Nodes that one `FusedLinear` replaces.

    Attributes:
        products: of the same x, with three pieces together at most.
        tail: the nodes after the products: activation, product with the gate, sum with the residual.
        activation: applied to the first piece.
        gated: whether the first piece times the second is the only output: 1, or 2 if the second is the activated one.
        has_residual: whether the last node of the tail is a sum with a residual.
        norm: the node whose only readers are the products.
    """

    products: list[Product]
    tail: list[ir.Node] = dataclasses.field(default_factory=list)
    activation: str = "none"
    gated: int = 0
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
        return [self.tail[-1].outputs[0]] if self.tail else [v for product in self.products for v in product.values]

    @property
    def residual(self) -> ir.Value | None:
        """What is added to the only output."""
        if not self.has_residual:
            return None
        before = self.tail[-2].outputs[0] if len(self.tail) > 1 else self.products[0].values[0]
        return other_input(self.tail[-1], before)


def find_groups(graph: ir.Graph) -> list[Group]:
    """Returns what can be fused, no node in two groups."""
    finder = _Finder(graph)
    groups = [*finder.gated(), *finder.singles(), *finder.side_by_side()]
    for group in groups:
        _take_norm(group)
    return [group for group in groups if len(group.nodes) > 1]


class _Finder:
    """Products that belong to no group yet.

    Attributes:
        pieces: by value: the product that it is a piece of, and its number there.
        taken: nodes of tails.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.taken: set[ir.Node] = set()
        self.pieces: dict[ir.Value | None, tuple[Product, int]] = {}
        for node in graph:
            product = find_product(node)
            if product is not None:
                self.pieces.update((value, (product, number)) for number, value in enumerate(product.values))

    def gated(self) -> Iterator[Group]:
        """`activation(first) * second`."""
        for node in self.graph:
            for activated in node.inputs if is_op(node, "Mul") else ():
                group = self._gate(node, activated)
                if group is not None:
                    self._take(group)
                    yield group
                    break

    def _gate(self, node: ir.Node, activated: ir.Value | None) -> Group | None:
        """The group that ends with the product `node` of `activated` and something else."""
        function = activated.producer() if activated is not None and only_user(activated) is node else None
        activation, gate = activation_of(function), other_input(node, activated)
        if function is None or activation is None:
            return None
        source = function.inputs[0]
        if source not in self.pieces or gate not in self.pieces:
            return None
        if only_user(source) is not function or only_user(gate) is not node:
            return None
        (first, number), (second, other_number) = self.pieces[source], self.pieces[gate]
        if first.columns[number] != second.columns[other_number]:
            return None
        if first is second and len(first.columns) == 2 and number != other_number:
            return Group([first], [function, node], activation, gated=1 + number)
        if first is not second and len(first.columns) == len(second.columns) == 1 and _rows(first) == _rows(second):
            return Group([first, second], [function, node], activation, gated=1)
        return None

    def singles(self) -> Iterator[Group]:
        """Products with an activation or a residual."""
        for product in [product for product, _ in self.pieces.values() if len(product.columns) == 1]:
            group = Group([product])
            function = only_user(product.values[0])
            activation = activation_of(function)
            if function is not None and activation is not None:
                group.tail, group.activation = [function], activation
            self._take(group)
            if group.tail:
                yield group

    def side_by_side(self) -> Iterator[Group]:
        """Products of the same rows, in the graph's order."""
        by_rows: dict[object, list[Product]] = {}
        for product, number in self.pieces.values():
            if number == 0:
                by_rows.setdefault(_rows(product), []).append(product)
        for same in by_rows.values():
            group = Group([])
            for product in same:
                if sum(len(p.columns) for p in (*group.products, product)) > MAX_PIECES:
                    yield group
                    group = Group([])
                group.products.append(product)
            yield group

    def _take(self, group: Group) -> None:
        """Adds a residual to a group of one output; if it has a tail then, its products are no longer free."""
        node = residual_sum(group.outputs[0])
        if node is not None and node not in self.taken:
            group.tail.append(node)
            group.has_residual = True
        if group.tail:
            self.taken.update(group.tail)
            for product in group.products:
                for value in product.values:
                    del self.pieces[value]


def _rows(product: Product) -> object:
    """Equal for products that read the same rows in the same place."""
    return product.x, placement(product.nodes[0])


def _take_norm(group: Group) -> None:
    """Adds the norm before the products where they are its only readers."""
    x = group.products[0].x
    norm = x.producer()
    if norm is None or norm_of(norm) is None or x.is_graph_output():
        return
    readers = {(product.nodes[0], 0) for product in group.products}
    apart = [node for node, _ in readers if placement(node) != placement(norm)]
    if {(use.node, use.idx) for use in x.uses()} == readers and not apart:
        group.norm = norm
