# SPDX-License-Identifier: Apache-2.0
"""A model's work cut into what comes before the blocks, the blocks, and what comes after."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from poptransformer.errors import GraphError
from poptransformer.ipu.shard import is_sharded, shard
from poptransformer.ipu.trace import Sizes, Stored, trace
from poptransformer.ipu.work import Collective, Numbers, Op

BLOCK = "ipu"  # the annotation that tells blocks apart in a graph with one block on each IPU


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
    """A built step graph, ready to be costed for any sizes and replicas.

    Attributes:
        graph: built with one block on each IPU (`layer_per_ipu` of ones), before `fuse`.
        numbers: formats of activations and caches.
        stored: how weights that are not yet quantized will be stored.
    """

    graph: ir.Graph
    numbers: Numbers
    stored: Mapping[str, Stored]
    _known: dict[Sizes, list[Op]] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def places(self) -> list[int]:
        """For each node, its block; -1 before the blocks, -2 after them."""
        inside = [node.metadata_props.get(BLOCK) for node in self.graph]
        if not any(inside):
            raise GraphError("The graph has no blocks; build it with one block on each IPU (layer_per_ipu of ones).")
        later: set[str] = set()
        places = []
        for node, block in zip(self.graph, inside, strict=True):
            follows = any(value is not None and value.name in later for value in node.inputs)
            if block is not None or follows:
                later |= {str(value.name) for value in node.outputs}
            places.append(int(block) if block is not None else -2 if follows else -1)
        return places

    def _trace(self, sizes: Sizes) -> list[Op]:
        """The whole model's work; it does not depend on the replicas unless the graph is one replica's already."""
        key = dataclasses.replace(sizes, replicas=1)
        if key not in self._known:
            self._known[key] = trace(self.graph, key, self.numbers, self.stored)
        traced = self._known[key]
        return trace(self.graph, sizes, self.numbers, self.stored) if is_sharded(traced) else traced

    def segments(self, sizes: Sizes) -> Segments:
        """Returns the work of one replica, cut into segments.

        Args:
            sizes: batch, tokens, slots and replicas.

        Raises:
            ConfigError: the heads cannot be divided among the replicas.
        """
        traced = self._trace(sizes)
        place = {op.name: block for op, block in zip(traced, self.places, strict=True)}
        parts: dict[int, list[Op]] = {-1: [], -2: []}
        for op in shard(traced, sizes.replicas):
            block = place[op.name] if op.name in place else place[op.name.rpartition("/")[0]]
            parts.setdefault(block, []).append(op)
        head = _with_gathered_logits(parts[-2], sizes)
        makers = {name: elements for ops in parts.values() for op in ops for name, elements in op.outputs}
        segment = functools.partial(_segment, makers)
        blocks = tuple(segment(f"block {index}", parts[index]) for index in sorted(parts) if index >= 0)
        tables = {weight.name for op in parts[-1] for weight in op.weights if weight.rows > 1}
        tied = any(weight.name in tables for op in head for weight in op.weights)
        before, after = segment("embedding", parts[-1]), segment("head", head)
        hidden = max((elements for _, elements in blocks[0].given), default=sizes.batch * sizes.tokens)
        return Segments(before, blocks, after, sizes.replicas, tied, hidden)


def _segment(makers: Mapping[str, int], name: str, ops: Sequence[Op]) -> Segment:
    """Puts nodes together; what they read and do not make is given."""
    made = {output for op in ops for output, _ in op.outputs}
    read = dict.fromkeys(value for op in ops for value in op.inputs if value not in made)
    return Segment(name, tuple(ops), tuple((value, makers[value]) for value in read if value in makers))


def _with_gathered_logits(ops: Sequence[Op], sizes: Sizes) -> list[Op]:
    """The head's replicas exchange the likeliest token of their part of the vocabulary."""
    if sizes.replicas == 1:
        return list(ops)
    chosen = Collective("all_gather", 4 * sizes.batch * sizes.replicas, sizes.replicas)
    return [*ops, Op("head/all_gather", chosen)]
