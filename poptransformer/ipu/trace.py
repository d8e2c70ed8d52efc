# SPDX-License-Identifier: Apache-2.0
"""From a built step graph to the work of each node, with its real shapes and stored weights.

The graph is what the layers wrote, with `Linear` for products with weights, before `fuse`: an IPU has no use for fused
CPU kernels. Packed weights count with the bytes they have in the graph; `stored` says what weights that are not yet
quantized would become.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import onnx_ir as ir

from poptransformer.errors import GraphError
from poptransformer.ipu.kinds import ATTENTIONS, COLLECTIVES, LOOKUPS, MOVES, PRODUCTS, VECTORS, VIEWS
from poptransformer.ipu.work import (
    Attention,
    Cache,
    Collective,
    Lookup,
    Move,
    Numbers,
    Op,
    Product,
    Recurrence,
    Vector,
    Weight,
    Work,
)
from poptransformer.state import BATCH, CHOSEN, SLOTS, TOKENS

_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Values of the step graph's open dimensions.

    Attributes:
        batch: rows.
        tokens: tokens of the step.
        slots: cache slots that are allocated.
        attended: slots that attention reads.
    """

    batch: int = 1
    tokens: int = 1
    slots: int = 1
    attended: int = 1

    def dims(self) -> dict[str, int]:
        """Symbolic dimension -> size."""
        return {BATCH: self.batch, TOKENS: self.tokens, SLOTS: self.slots, CHOSEN: 1}


def trace(graph: ir.Graph, sizes: Sizes, numbers: Numbers, stored: Mapping[str, Stored] | None = None) -> list[Op]:
    """Returns the work of each node of a step graph, in order.

    Args:
        graph: the graph.
        sizes: its open dimensions.
        numbers: the formats of activations and caches.
        stored: for weights that are still to be quantized: initializer -> how it will be stored.

    Raises:
        GraphError: the graph has been fused.
    """
    tracer = _Tracer(graph, sizes, numbers, stored or {})
    return [tracer.op(node) for node in graph]


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a matrix is stored.

    Attributes:
        bits: of one element.
        scale_bytes: scales and offsets.
        math: what the matrix unit multiplies by it: `fp32`, `fp16` or `fp8`.
    """

    bits: int
    scale_bytes: int
    math: str


class _Tracer:
    def __init__(self, graph: ir.Graph, sizes: Sizes, numbers: Numbers, stored: Mapping[str, Stored]) -> None:
        self.sizes, self.numbers, self.stored = sizes, numbers, stored
        self.dims = sizes.dims()
        self.elements: dict[str, int] = {}
        self.constants: set[str] = {str(name) for name in graph.initializers}
        self.states = {str(value.name) for value in graph.inputs if value.dtype in _FLOATS}

    def op(self, node: ir.Node) -> Op:
        """One node as work."""
        if node.op_type == "FusedLinear":
            raise GraphError("The IPU is emulated on the graph before fuse; compile it with fuse=False.")
        inputs = [value for value in node.inputs if value is not None]
        activations = [value for value in inputs if value.name not in self.constants]
        for value in node.outputs:
            self.elements[str(value.name)] = self._size_of_output(node, value, activations)
        if not activations and node.op_type not in LOOKUPS:
            self.constants |= {str(value.name) for value in node.outputs}
        is_attention = node.op_type in ATTENTIONS
        kept = [value for value in node.outputs[: 1 if is_attention else None] if value.dtype in _FLOATS]
        return Op(
            name=str(node.name),
            work=self._work(node, activations),
            inputs=tuple(
                str(value.name) for value in activations if value.dtype in _FLOATS and value.name not in self.states
            ),
            outputs=tuple((str(value.name), self.elements[str(value.name)]) for value in kept),
            weights=tuple(self._weights(node)),
            caches=tuple(self._caches(node)),
        )

    # -- sizes --------------------------------------------------------------------------------------------------

    def _size(self, value: ir.Value) -> int | None:
        """Elements of a value, where its shape is known."""
        if value.name in self.elements:
            return self.elements[str(value.name)]
        if value.shape is None:
            return None
        sizes = [dim if isinstance(dim, int) else self.dims.get(str(dim.value)) for dim in value.shape]
        return None if any(size is None for size in sizes) else math.prod(size for size in sizes if size is not None)

    def _size_of_output(self, node: ir.Node, value: ir.Value, activations: list[ir.Value]) -> int:
        """Elements of an output; where inference gave up, what views and element-wise ops leave: their input's."""
        size = self._size(value)
        if size is not None:
            return size
        shape = self._weight_shape(node)
        if shape is not None and activations:
            return (self._size(activations[0]) or 0) // shape[0] * shape[1]
        found = max((self._size(given) or 0 for given in activations), default=0)
        return found // len(node.outputs) if node.op_type == "Split" else found

    def _last(self, value: ir.Value) -> int:
        dim = value.shape[-1] if value.shape is not None and len(value.shape) else 1
        return dim if isinstance(dim, int) else 1

    # -- work ---------------------------------------------------------------------------------------------------

    def _work(self, node: ir.Node, activations: list[ir.Value]) -> Work | None:
        kind, output = node.op_type, node.outputs[0]
        elements = self.elements[str(output.name)]
        if kind in PRODUCTS:
            return self._product(node, elements)
        if kind in ATTENTIONS:
            return self._attention(node)
        if kind in COLLECTIVES:
            return Collective(COLLECTIVES[kind], elements, node.attributes["replicas"].as_int())
        if kind == "WKV":
            channels = self._last(output)
            return Recurrence(self.sizes.tokens, self.sizes.batch * channels)
        if kind in VIEWS or output.dtype not in _FLOATS or str(output.name) in self.constants:
            return None
        if kind in LOOKUPS:
            columns = max(1, self._last(output))
            return Lookup(elements // columns, columns)
        if kind in MOVES:
            return Move(elements)
        passes, reductions = VECTORS.get(kind, (1, 0))
        same = sum(self._size(value) == elements and value.dtype in _FLOATS for value in activations)
        return Vector(elements, max(1, same), passes, reductions)

    def _product(self, node: ir.Node, elements: int) -> Product:
        x, weight = _operand(node, 0), _operand(node, 1)
        depth, columns = self._weight_shape(node) or (self._last(x), max(1, self._last(node.outputs[0])))
        rows = max(1, elements // columns)
        if weight.name not in self.constants:
            groups = max(1, (self._size(weight) or depth * columns) // (depth * columns))
            return Product(max(1, rows // groups), depth, columns, 0, self.numbers.math, groups)
        found = self._stored(node, weight)
        return Product(rows, depth, columns, found.bits, found.math)

    def _weight_shape(self, node: ir.Node) -> tuple[int, int] | None:
        """Depth and columns of a product with a weight; None for other nodes."""
        if node.op_type not in PRODUCTS or not _operand(node, 1).is_initializer():
            return None
        if "columns" in node.attributes:
            return self._last(_operand(node, 0)), node.attributes["columns"].as_int()
        rows, columns = _matrix_shape(_operand(node, 1))
        return (columns, rows) if node.op_type == "Linear" else (rows, columns)

    def _attention(self, node: ir.Node) -> Attention:
        heads, kv_heads = node.attributes["num_heads"].as_int(), node.attributes["num_kv_heads"].as_int()
        head_dim = self._last(node.outputs[0]) // heads
        return Attention(self.sizes.batch, self.sizes.tokens, self.sizes.attended, heads, kv_heads, head_dim)

    # -- what is kept -------------------------------------------------------------------------------------------

    def _stored(self, node: ir.Node, weight: ir.Value) -> Stored:
        """How the weight of a product or a lookup lies in memory."""
        if "format" in node.attributes and node.op_type.startswith("Quantized"):
            bits = 4 if node.attributes["format"].as_string() == "int4" else 8
            scales = sum(_nbytes(value) for value in node.inputs[2:4] if value is not None)
            x = node.inputs[0]
            producer = None if x is None else x.producer()
            is_fp8 = producer is not None and producer.op_type == "RoundToFloat8"
            return Stored(bits, scales, "fp8" if is_fp8 else self.numbers.math)
        if weight.name in self.stored:
            return self.stored[str(weight.name)]
        itemsize = weight.dtype.itemsize if weight.dtype is not None else 4
        return Stored(int(8 * min(itemsize, self._widest)), 0, self.numbers.math)

    @property
    def _widest(self) -> int:
        """Bytes that a parameter takes at most: graphs keep fp32 where an IPU computes in fp16."""
        return self.numbers.activation_bytes

    def _weights(self, node: ir.Node) -> list[Weight]:
        found = []
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.dtype is None:
                continue
            if node.op_type.startswith("Quantized"):
                if index == 1:
                    found.append(self._packed(node, value))
                continue
            rows, columns = _matrix_shape(value)
            is_matrix = rows > 1 and (node.op_type in PRODUCTS or node.op_type in LOOKUPS)
            stored = self._stored(node, value) if is_matrix else None
            if stored is not None:
                found.append(Weight(str(value.name), rows, columns, stored.bits, stored.scale_bytes))
            elif value.dtype in _FLOATS:
                found.append(Weight(str(value.name), rows, columns, 8 * self._widest))
        return found

    def _packed(self, node: ir.Node, codes: ir.Value) -> Weight:
        """A packed weight `[N, K]`; lookups note K as `depth`, products have it in their input."""
        columns = node.attributes["columns"].as_int()
        x = node.inputs[0]
        depth = node.attributes["depth"].as_int() if "depth" in node.attributes else self._last(x) if x else 1
        stored = self._stored(node, codes)
        return Weight(str(codes.name), columns, depth, stored.bits, stored.scale_bytes)

    def _caches(self, node: ir.Node) -> list[Cache]:
        """The state that a node reads: keys and values, or the running sums of a recurrence."""
        if node.op_type in ATTENTIONS:
            work = self._attention(node)
            rows = work.batch * work.kv_heads * self.sizes.slots
            return [Cache(rows, work.head_dim, self.numbers.cache_bytes)] * 2
        states = [value for value in node.inputs if value is not None and value.name in self.states]
        return [Cache(self.sizes.batch, (self._size(value) or 0) // self.sizes.batch, 4) for value in states]


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError(f"{node.name} ({node.op_type}) has no input {index}; the graph is not complete.")
    return value


def _matrix_shape(value: ir.Value) -> tuple[int, int]:
    """An initializer as rows and columns; a vector is one row."""
    dims = [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
    return (math.prod(dims[:-1]), dims[-1]) if dims else (1, 1)


def _nbytes(value: ir.Value) -> int:
    rows, columns = _matrix_shape(value)
    return int(rows * columns * (value.dtype.itemsize if value.dtype is not None else 4))
