# SPDX-License-Identifier: Apache-2.0
"""Cuts a graph at the borders of its pipeline stages: one model for each run of nodes on the same stage.

Nodes carry their stage as `pipeline_stage`. Those that have none, a final norm for example, belong to the stage of what
they read. A stage may come twice: a head that shares the embedding's table lies on the first stage, after all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from poptransformer.errors import GraphError
from poptransformer.graph import DOMAIN

STAGE = "pipeline_stage"
COLLECTIVES = ("AllReduce", "AllGather")
# Initializers up to this size are repeated where they are needed, together with what is computed from them alone.
_SMALL = 1024


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive work of one stage.

    Attributes:
        stage: which one.
        model: its nodes; it receives what segments before it have made, and sends what later ones need.
    """

    stage: int
    model: ir.Model


def split_stages(model: ir.Model, states: Mapping[str, str], anchor: str = "lengths") -> list[Segment]:
    """Cuts a model into segments, in the order they run in.

    Args:
        model: stays as it is.
        states: inputs that one step hands to the next, and the outputs that are their next values; all other inputs
            are known on every stage, and what is computed from these alone, such as positions, is repeated on each.
            So are states that hang on nothing else: each stage has its own copy.
        anchor: an input that every step has.

    Raises:
        GraphError: a value that goes from one stage to another is no fp32 tensor.
    """
    plan = _Plan(model.graph, states)
    return [Segment(stage, plan.model_of(number, model, anchor)) for number, stage in enumerate(plan.stages)]


class _Plan:
    """Which segment each node of a graph belongs to.

    Attributes:
        stages: the stage of each segment.
        segments: the segment of each node, by its place in the graph; None for nodes that are repeated.
        transfers: by the name of a value, the segments that receive it and the tag of each message.
        repeated: names of the next values of states that every stage has.
    """

    def __init__(self, graph: ir.Graph, states: Mapping[str, str]) -> None:
        self.transfers: dict[str, dict[int, int]] = {}
        outputs = {_name(value): value for value in graph.outputs}
        bound: set[str] = set()
        while True:
            made_in = self._place_all(graph, bound)
            # A state is on one stage if what makes its next value is, and then so may be what reads it.
            found = {past for past, present in states.items() if made_in.get(outputs.get(present)) is not None}
            if found <= bound:
                break
            bound |= found
        self.repeated = {present for past, present in states.items() if past not in bound}
        self._transfer(graph, made_in)

    def _place_all(self, graph: ir.Graph, states: set[str]) -> dict[ir.Value | None, int | None]:
        """Gives each node a segment; returns those that values are made in, None for what is repeated."""
        self.stages: list[int] = []
        self.segments: list[int | None] = []
        made_in: dict[ir.Value | None, int | None] = {}
        constants: set[ir.Value] = set()
        for node in graph:
            segment = None if _is_free(node, made_in, states, constants) else self._place(node, made_in)
            self.segments.append(segment)
            made_in.update(dict.fromkeys(node.outputs, segment))
        return made_in

    def _transfer(self, graph: ir.Graph, made_in: Mapping[ir.Value | None, int | None]) -> None:
        """Finds what goes from one segment to another."""
        tag = 0
        for node, segment in zip(graph, self.segments, strict=True):
            for value in _reads(node):
                source = made_in.get(value)
                if source is None or segment is None or source == segment:
                    continue
                receivers = self.transfers.setdefault(_name(value), {})
                if segment not in receivers:
                    _check_sendable(value)
                    receivers[segment] = tag
                    tag += 1

    def _place(self, node: ir.Node, made_in: Mapping[ir.Value | None, int | None]) -> int:
        """The first segment of the node's stage that is not before what the node reads."""
        before = [segment for value in _reads(node) if (segment := made_in.get(value)) is not None]
        first = max(before, default=0)
        own = node.metadata_props.get(STAGE)
        if own is None:
            if not self.stages:
                self.stages.append(0)
            return first
        for segment in range(first, len(self.stages)):
            if self.stages[segment] == int(own):
                return segment
        self.stages.append(int(own))
        return len(self.stages) - 1

    def model_of(self, number: int, model: ir.Model, anchor: str) -> ir.Model:
        """Returns the model of one segment."""
        graph = model.graph.clone()
        nodes = list(graph)
        kept = [node for node, segment in zip(nodes, self.segments, strict=True) if segment == number]
        values = {_name(value): value for node in nodes for value in node.outputs}
        made_here = {_name(value) for node in kept for value in node.outputs}
        # What is made of inputs alone is known on every stage; the first one gives it out.
        free = {
            _name(value) for node, s in zip(nodes, self.segments, strict=True) if s is None for value in node.outputs
        }
        given = made_here | self.repeated | (free if number == 0 else set())
        outputs = [value for value in graph.outputs if _name(value) in given]
        producers = {_name(v): s for node, s in zip(nodes, self.segments, strict=True) for v in node.outputs}
        like = next(value for value in graph.inputs if value.name == anchor)
        for name, receivers in self.transfers.items():
            if number in receivers:
                source = self.stages[producers[name] or 0]
                self._receive(graph, values[name], like, set(kept), source, receivers[number])
            if name in made_here:
                for count, (segment, tag) in enumerate(receivers.items()):
                    outputs.append(self._send(graph, values[name], self.stages[segment], tag, count))
        graph.outputs[:] = outputs
        _remove_unused(graph, {like})
        return ir.Model(
            graph,
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            functions=list(model.functions.values()),
        )

    @staticmethod
    def _receive(
        graph: ir.Graph, value: ir.Value, like: ir.Value, readers: set[ir.Node], source: int, tag: int
    ) -> None:
        attributes = ir.convenience.convert_attributes({"source": source, "tag": tag})
        node = ir.Node(DOMAIN, "Recv", [like], attributes, version=1, name=f"{_name(value)}/Recv")
        received = node.outputs[0]
        received.name, received.type, received.shape = f"{_name(value)}/received", value.type, value.shape
        for use in list(value.uses()):
            if use.node in readers:
                use.node.replace_input_with(use.idx, received)
        graph.insert_before(graph.node(0), node)

    @staticmethod
    def _send(graph: ir.Graph, value: ir.Value, to: int, tag: int, count: int) -> ir.Value:
        attributes = ir.convenience.convert_attributes({"to": to, "tag": tag})
        node = ir.Node(
            DOMAIN, "Send", [value], attributes, version=1, name=f"{_name(value)}/Send{f'_{count}' * (count > 0)}"
        )
        sent = node.outputs[0]
        sent.name, sent.type, sent.shape = f"sent.{tag}", ir.TensorType(ir.DataType.INT64), ir.Shape([])
        graph.append(node)
        return sent


def _is_free(
    node: ir.Node, made_in: Mapping[ir.Value | None, int | None], states: set[str], constants: set[ir.Value]
) -> bool:
    """Whether a node can be repeated on each stage that reads it.

    It is, where it reads inputs of the step, small constants and what is made of these, or nothing but weights: those
    that lie on a stage of their readers only. Adds what is made of weights to `constants`, if they are large.
    """
    if node.domain == DOMAIN and node.op_type in COLLECTIVES:
        return False
    reads = list(_reads(node))
    large = [value in constants or (value.is_initializer() and _is_large(value)) for value in reads]
    if any(large) and all(value in constants or value.is_initializer() for value in reads):
        constants.update(node.outputs)
        return True
    return not any(_is_bound(value, made_in, states, constants) for value in reads)


def _is_bound(
    value: ir.Value, made_in: Mapping[ir.Value | None, int | None], states: set[str], constants: set[ir.Value]
) -> bool:
    """Whether a value lies on one stage: a state, a large weight, or something made there."""
    if value.producer() is not None:
        return made_in.get(value) is not None or value in constants
    return _is_large(value) if value.const_value is not None else value.name in states


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > _SMALL


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """What a node reads, the bodies of its attributes included."""
    for part in (node, *_inner_nodes(node)):
        yield from (value for value in part.inputs if value is not None)


def _inner_nodes(node: ir.Node) -> Iterable[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _name(value: ir.Value) -> str:
    return str(value.name)


def _check_sendable(value: ir.Value) -> None:
    if value.dtype != ir.DataType.FLOAT:
        raise GraphError(
            f"{value.name} goes from one pipeline stage to another, but is {value.dtype}; only fp32 can. Compute it on "
            "the stage that reads it, or set model.layer_per_ipu=null."
        )


def _remove_unused(graph: ir.Graph, needed: set[ir.Value]) -> None:
    """Removes nodes, inputs and initializers that no output hangs on; but for the inputs in `needed`."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value in graph.outputs for value in node.outputs):
            graph.remove(node, safe=True)
    graph.inputs[:] = [value for value in graph.inputs if value.uses() or value in needed]
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
