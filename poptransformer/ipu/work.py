# SPDX-License-Identifier: Apache-2.0
"""What a node of a graph asks of an IPU, without names: equal work costs the same.

Shapes: `B` rows of the batch, `L` tokens of the step, `S` cache slots, `N` heads, `K` key/value heads, `H` head size.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Numbers:
    """In what formats an IPU computes.

    Attributes:
        math: inputs of the matrix unit for activations: `fp32` or `fp16`.
        activation_bytes: of one activation.
        partial_bytes: of one partial sum.
        cache_bytes: of one element of a key/value cache.
    """

    math: str = "fp16"
    activation_bytes: int = 2
    partial_bytes: int = 2
    cache_bytes: int = 2


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product `[rows, depth] x [depth, columns]`, `groups` of them side by side.

    Attributes:
        rows: rows of the activations.
        depth: what is summed over.
        columns: columns of the result.
        weight_bits: bits of a stored weight; 0 where the second operand is an activation too.
        math: what the matrix unit multiplies: `fp32`, `fp16` or `fp8`.
        groups: independent products of this size.
    """

    rows: int
    depth: int
    columns: int
    weight_bits: int = 16
    math: str = "fp16"
    groups: int = 1

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.depth * self.columns * self.groups


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of `tokens` new tokens over a cache of `slots`, of which the new ones are part."""

    batch: int
    tokens: int
    slots: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products."""
        return 4 * self.batch * self.heads * self.tokens * self.slots * self.head_dim


@dataclasses.dataclass(frozen=True)
class Vector:
    """Element by element: sums, activations, norms.

    Attributes:
        elements: of the result.
        operands: activations that are read.
        passes: how often each element is touched.
        reductions: sums over a row that tiles must exchange.
    """

    elements: int
    operands: int = 1
    passes: int = 1
    reductions: int = 0

    @property
    def flops(self) -> int:
        """Operations, one for each element and pass."""
        return self.elements * self.passes


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Rows picked from a table: `rows` of `columns`."""

    rows: int
    columns: int
    flops = 0


@dataclasses.dataclass(frozen=True)
class Move:
    """Elements that change their place: transposes, concatenations."""

    elements: int
    flops = 0


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """A recurrence over the tokens of a step, `steps` of `elements` channels each (RWKV)."""

    steps: int
    elements: int
    passes: int = 16

    @property
    def flops(self) -> int:
        """Operations."""
        return self.steps * self.elements * self.passes


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between the replicas: `all_reduce` or `all_gather` of `elements` (the whole result)."""

    kind: str
    elements: int
    replicas: int
    flops = 0


Work = Product | Attention | Vector | Lookup | Move | Recurrence | Collective


@dataclasses.dataclass(frozen=True)
class Weight:
    """A stored parameter.

    Attributes:
        name: the initializer's.
        rows: of a matrix; 1 for a vector.
        columns: elements of a row.
        bits: of one element.
        scale_bytes: scales and offsets, all together.
    """

    name: str
    rows: int
    columns: int
    bits: int
    scale_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes, scales included."""
        return -(-self.rows * self.columns * self.bits // 8) + self.scale_bytes


@dataclasses.dataclass(frozen=True)
class Cache:
    """State that one step hands to the next: `rows` vectors of `columns` elements."""

    rows: int
    columns: int
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.rows * self.columns * self.itemsize


@dataclasses.dataclass(frozen=True)
class Op:
    """One node: its work, what it reads, and what it leaves.

    Attributes:
        name: the node's.
        work: what it asks for; None for a view, which costs nothing.
        inputs: names of the activations it reads.
        outputs: name -> elements of what it leaves.
        weights: parameters it reads.
        caches: state it keeps.
    """

    name: str
    work: Work | None
    inputs: tuple[str, ...] = ()
    outputs: tuple[tuple[str, int], ...] = ()
    weights: tuple[Weight, ...] = ()
    caches: tuple[Cache, ...] = ()
