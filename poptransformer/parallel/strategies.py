# SPDX-License-Identifier: Apache-2.0
"""Strategies: how the weight of a layer is divided among the replicas, and how their results are put together.

A layer names one; with one replica each is the identity. A pair of `start` and `end` needs one sum among all replicas:
`start` gives each replica some of the columns, `end` takes these and adds up what the replicas make of them.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from poptransformer import ops
from poptransformer.build import Build, check_choice
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.parallel.shares import Share


class Strategy:
    """Base class: every replica has the whole weight and the whole result.

    Attributes:
        name: what layers and messages call it.
        is_sum: whether the result is the sum of the replicas' results; a bias then belongs to one of them.
    """

    name: ClassVar[str] = "identity"
    is_sum: ClassVar[bool] = False

    def inputs(self, build: Build, size: int) -> Share:
        """The replica's share of the `size` input columns."""
        return Share.whole(size)

    def outputs(self, build: Build, size: int) -> Share:
        """The replica's share of the `size` output columns."""
        return Share.whole(size)

    def combine(self, graph: Graph, y: ir.Value, build: Build) -> ir.Value:
        """Makes the layer's result of the replica's own one."""
        return y


class Identity(Strategy):
    """Every replica computes the whole layer."""


class Start(Strategy):
    """Output columns are divided: each replica has some of the result's columns."""

    name = "start"

    def outputs(self, build: Build, size: int) -> Share:
        """An even share."""
        return Share.even(size, build.replica, build.num_replicas)


class FusedStart(Start):
    """The same for a matrix that holds several of equal size, one after the other: a gate and what it multiplies.

    Args:
        parts: how many there are.
    """

    name = "fused_start"

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def outputs(self, build: Build, size: int) -> Share:
        """An even share of each part."""
        if size % self.parts:
            raise ConfigError(f"A layer of {size} columns does not hold {self.parts} parts of equal size.")
        return super().outputs(build, size // self.parts).repeated(self.parts, size // self.parts)


class End(Strategy):
    """Input columns are divided, as a `start` before has left them; the results are added up."""

    name = "end"
    is_sum = True

    def inputs(self, build: Build, size: int) -> Share:
        """An even share."""
        return Share.even(size, build.replica, build.num_replicas)

    def combine(self, graph: Graph, y: ir.Value, build: Build) -> ir.Value:
        """The sum of all replicas' results."""
        return ops.all_reduce(graph, y, build.num_replicas)


class Heads(Strategy):
    """Output columns are groups of heads one after the other; each replica has its heads of each group.

    Args:
        head_dim: columns of a head.
        *counts: heads of each group. A group with fewer heads than replicas is repeated: each replica has the head
            that its queries need.
    """

    name = "heads"

    def __init__(self, head_dim: int, *counts: int) -> None:
        self.head_dim = head_dim
        self.counts = counts

    @property
    def size(self) -> int:
        """Columns of all heads."""
        return sum(self.counts) * self.head_dim

    def outputs(self, build: Build, size: int) -> Share:
        """The replica's heads."""
        if size != self.size:
            raise ConfigError(
                f"A layer of {size} columns cannot be divided as {self.name}: {' + '.join(map(str, self.counts))} "
                f"heads of {self.head_dim} make {self.size}."
            )
        ranges, before = [], 0
        for count in self.counts:
            first, own = _own_heads(count, build)
            ranges.append(((before + first) * self.head_dim, (before + first + own) * self.head_dim))
            before += count
        return Share(tuple(ranges), sum(end - first for first, end in ranges))


class FusedQKV(Heads):
    """Queries, keys and values of equally many heads in one projection, each in one piece."""

    name = "fused_qkv"

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(head_dim, num_heads, num_heads, num_heads)


class MultiQueryQKV(Heads):
    """Queries, keys and values in one projection, with fewer heads of keys and values."""

    name = "multi_query_qkv"

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        super().__init__(head_dim, num_heads, num_kv_heads, num_kv_heads)


class Vocabulary(Strategy):
    """Rows of a table of tokens are divided; also those of the head, whose logits are then gathered."""

    name = "vocabulary"

    def outputs(self, build: Build, size: int) -> Share:
        """An even share of the tokens."""
        return Share.even(size, build.replica, build.num_replicas)


_BY_NAME: dict[str, type[Strategy]] = {cls.name: cls for cls in (Identity, Start, End, Vocabulary)}


def strategy_of(strategy: Strategy | str) -> Strategy:
    """Returns the strategy of a name; those that need numbers of heads are given as objects.

    Raises:
        ConfigError: there is no such strategy.
    """
    if isinstance(strategy, Strategy):
        return strategy
    check_choice("strategy", strategy, tuple(_BY_NAME))
    return _BY_NAME[strategy]()


def valid_replicas(num_heads: int, num_kv_heads: int | None = None) -> list[int]:
    """Numbers of replicas that heads can be divided among.

    Args:
        num_heads: N.
        num_kv_heads: K; N by default. K must be a multiple of the number of replicas, or that a multiple of K.
    """
    kv_heads = num_kv_heads or num_heads
    counts = (count for count in range(1, num_heads + 1) if num_heads % count == 0)
    return [count for count in counts if kv_heads % count == 0 or count % kv_heads == 0]


def local_heads(build: Build, where: str, num_heads: int, num_kv_heads: int | None = None) -> tuple[int, int]:
    """Returns how many query heads and how many key and value heads one replica has.

    Args:
        build: what is being built.
        where: the layer, for the error.
        num_heads: N of the whole model.
        num_kv_heads: K of the whole model; N by default.

    Raises:
        ConfigError: the heads cannot be divided among so many replicas; names the numbers that they can.
    """
    kv_heads, replicas = num_kv_heads or num_heads, build.num_replicas
    valid = valid_replicas(num_heads, kv_heads)
    if replicas not in valid:
        does_not = f"does not divide {num_heads} heads"
        if num_heads % replicas == 0:
            does_not = f"neither divides {kv_heads} key/value heads nor is a multiple of them"
        powers = [count for count in valid if count & (count - 1) == 0]
        raise ConfigError(
            f"num_replicas={replicas} {does_not}; valid: {', '.join(map(str, valid))}; "
            f"power of two: {', '.join(map(str, powers))} ({where})"
        )
    return num_heads // build.num_replicas, max(1, kv_heads // build.num_replicas)


def _own_heads(count: int, build: Build) -> tuple[int, int]:
    """First head of the replica in a group, and how many it has there."""
    if count < build.num_replicas:
        return build.replica * count // build.num_replicas, 1
    each = count // build.num_replicas
    return build.replica * each, each
