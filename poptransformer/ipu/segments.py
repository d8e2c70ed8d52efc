# SPDX-License-Identifier: Apache-2.0
"""A model's work cut into what comes before the blocks, the blocks, and what comes after."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from poptransformer.errors import GraphError
from poptransformer.ipu.trace import Sizes, Stored, trace
from poptransformer.ipu.work import Numbers, Op

BLOCK = "block"  # what `block_scope` marks nodes with


@dataclasses.dataclass(frozen=True)
class Segment:
    """Nodes that stay together on one IPU.

    Attributes:
        name: what reports call it.
        ops: their work, in order.
        given: activations that come from earlier segments, name -> elements.
    """

    name: str
    ops: tuple[Op, ...]
    given: tuple[tuple[str, int], ...] = ()

    @functools.cached_property
    def signature(self) -> tuple[object, ...]:
        """Equal for segments that cost the same: work, weights and caches without their names."""
        return tuple(
            (op.work, tuple((w.rows, w.columns, w.bits, w.scale_bytes) for w in op.weights), op.caches)
            for op in self.ops
        )


@dataclasses.dataclass(frozen=True)
class Segments:
    """One step of one replica.

    Attributes:
        before: embedding and what else comes first.
        blocks: decoder blocks.
        after: final norm and head.
        replicas: tensor-parallel replicas.
        is_tied: whether the head reads the embedding's table.
        hidden: elements of the activations that go from stage to stage.
    """

    before: Segment
    blocks: tuple[Segment, ...]
    after: Segment
    replicas: int
    is_tied: bool
    hidden: int

    def all(self) -> tuple[Segment, ...]:
        """All segments in order."""
        return (self.before, *self.blocks, self.after)


@dataclasses.dataclass(frozen=True)
class StepGraph:
    """The step graph of one replica, ready to be costed for any sizes.

    Attributes:
        graph: what the layers wrote, before `fuse`.
        numbers: formats of activations and caches.
        stored: how weights that are not yet quantized will be stored.
        replicas: how many share the model; all of them have this graph.
    """

    graph: ir.Graph
    numbers: Numbers
    stored: Mapping[str, Stored]
    replicas: int = 1
    _known: dict[Sizes, Segments] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def places(self) -> list[int]:
        """For each node, its block; -1 before the blocks, -2 after them."""
        inside = [node.metadata_props.get(BLOCK) for node in self.graph]
        if not any(inside):
            raise GraphError(
                "The graph has no blocks; the model must write each of them within self.block_scope(graph, index)."
            )
        later: set[str] = set()
        places = []
        for node, block in zip(self.graph, inside, strict=True):
            follows = any(value is not None and value.name in later for value in node.inputs)
            if block is not None or follows:
                later |= {str(value.name) for value in node.outputs}
            places.append(int(block) if block is not None else -2 if follows else -1)
        return places

    def segments(self, sizes: Sizes) -> Segments:
        """Returns the work of one replica, cut into segments.

        Args:
            sizes: batch, tokens and slots.
        """
        if sizes not in self._known:
            self._known[sizes] = self._cut(trace(self.graph, sizes, self.numbers, self.stored), sizes)
        return self._known[sizes]

    def _cut(self, ops: Sequence[Op], sizes: Sizes) -> Segments:
        parts: dict[int, list[Op]] = {-1: [], -2: []}
        for op, block in zip(ops, self.places, strict=True):
            parts.setdefault(block, []).append(op)
        makers = {name: elements for op in ops for name, elements in op.outputs}
        segment = functools.partial(_segment, makers)
        blocks = tuple(segment(f"block {index}", parts[index]) for index in sorted(parts) if index >= 0)
        tables = {weight.name for op in parts[-1] for weight in op.weights if weight.rows > 1}
        tied = any(weight.name in tables for op in parts[-2] for weight in op.weights)
        before, after = segment("embedding", parts[-1]), segment("head", parts[-2])
        hidden = max((elements for _, elements in blocks[0].given), default=sizes.batch * sizes.tokens)
        return Segments(before, blocks, after, self.replicas, tied, hidden)


# Number of replicas -> the graph of one of them; raises ConfigError where the model cannot be divided among so many.
ShardedGraphs = Callable[[int], StepGraph]


def _segment(makers: Mapping[str, int], name: str, ops: Sequence[Op]) -> Segment:
    """Puts nodes together; what they read and do not make is given."""
    made = {output for op in ops for output, _ in op.outputs}
    read = dict.fromkeys(value for op in ops for value in op.inputs if value not in made)
    return Segment(name, tuple(ops), tuple((value, makers[value]) for value in read if value in makers))
