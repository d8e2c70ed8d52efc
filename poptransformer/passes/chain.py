# SPDX-License-Identifier: Apache-2.0
"""Puts nodes that follow each other into one: `Chain`, whose kernel runs theirs one after the other.

Between two nodes onnxruntime does about a microsecond of work, and several times that where weights stream through the
caches and take the place of its code. A decoder has five nodes a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set

import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.passes.choose_early import chooses_tokens
from poptransformer.passes.match import common_metadata, unique_name
from poptransformer.passes.nested import name_nested_functions
from poptransformer.passes.outline import Outliner

CHAIN = "Chain"
# Ops with a kernel whose outputs have types that hang on nothing, and from which output on that is not so.
_LINKS = {
    "CachedAttention": 1,
    "FusedLinear": 3,
    "Linear": 1,
    "QuantizedEmbedding": 1,
    "QuantizedLinear": 1,
    "RotaryCachedAttention": 1,
    "RoundToFloat8": 1,
    "SampleToken": 1,
    "WKV": 4,
}
_NO_VALUE = -1  # chain/steps.h


def chain(model: ir.Model) -> None:
    """Rewrites the main graph and those in it; run it last, when all functions are attached.

    The function body of a chain consists of the nodes that it replaces, so the model still runs without the library.
    """
    graphs = [model.graph, *(graph for node in model.graph for graph in _subgraphs(node))]
    for graph in graphs:
        names = {str(node.name) for node in graph}
        for run in _find_runs(graph):
            _replace(model, graph, run, names)
        graph.sort()
    name_nested_functions(model)


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]


def _find_runs(graph: ir.Graph) -> list[list[ir.Node]]:
    """Nodes that can run one after the other, everything that they read being there before the first of them."""
    runs: list[list[ir.Node]] = []
    run = _Run()
    for node in graph:
        if _is_link(node) and run.takes(node):
            run.nodes.append(node)
        elif _is_link(node):
            runs.append(run.nodes)
            run = _Run([node])
        elif run.feeds(node):
            run.outside.update(node.outputs)
    return [nodes for nodes in (*runs, run.nodes) if len(nodes) > 1]


@dataclasses.dataclass
class _Run:
    """A chain that grows.

    Attributes:
        nodes: its links.
        outside: values that hang on what it makes and are not made by it.
    """

    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    outside: set[ir.Value] = dataclasses.field(default_factory=set)

    def takes(self, node: ir.Node) -> bool:
        """Whether the node can be its next link."""
        return not any(value in self.outside or self._has_open_type(value) for value in node.inputs)

    def feeds(self, node: ir.Node) -> bool:
        """Whether the node, or a graph in it, reads what hangs on the chain."""
        reads = [*node.inputs, *(v for graph in _subgraphs(node) for inner in graph.all_nodes() for v in inner.inputs)]
        return any(v is not None and (v in self.outside or v.producer() in self.nodes) for v in reads)

    def _has_open_type(self, value: ir.Value | None) -> bool:
        """Whether the chain makes the value, in a type that the kernel does not know before it runs."""
        producer = None if value is None else value.producer()
        if producer is None or producer not in self.nodes:
            return False
        return value.index() >= _LINKS.get(producer.op_type, 1)  # type: ignore[union-attr,operator]


def _is_link(node: ir.Node) -> bool:
    return (node.domain == DOMAIN and node.op_type in _LINKS) or chooses_tokens(node)  # gather_nd.cpp


def _replace(model: ir.Model, graph: ir.Graph, nodes: Sequence[ir.Node], names: set[str]) -> None:
    made = {value: None for node in nodes for value in node.outputs}
    links = set(nodes)
    inputs = list(dict.fromkeys(v for node in nodes for v in node.inputs if v is not None and v not in made))
    outputs = [value for value in made if not _is_inside(value, links)]
    numbers = {value: number for number, value in enumerate((*inputs, *outputs))}
    numbers |= {value: len(numbers) + n for n, value in enumerate(v for v in made if v not in numbers)}
    kinds, attributes = _kinds(nodes)
    steps = [number for node, kind in zip(nodes, kinds, strict=True) for number in _step(node, kind, numbers)]
    attributes.append(ir.Attr("steps", ir.AttributeType.INTS, steps))
    name = unique_name(nodes, CHAIN, names)
    outliner = Outliner(model, CHAIN, [f"i{n}" for n in range(len(inputs))], {a.name: a.type for a in attributes})
    overload = _free_overload(model)
    outliner.overload(overload, nodes, inputs, outputs)
    link = ir.Node(
        DOMAIN,
        CHAIN,
        inputs,
        attributes,
        overload=overload,
        num_outputs=len(outputs),
        version=1,
        name=name,
        metadata_props=common_metadata(nodes),
    )
    graph.insert_after(nodes[-1], link)
    for old, new in zip(outputs, link.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)


def _is_inside(value: ir.Value, nodes: Set[ir.Node]) -> bool:
    """Whether only the nodes read the value. One that nobody reads is outside: its kernel writes it all the same."""
    users = [use.node for use in value.uses()]
    return bool(users) and not value.is_graph_output() and all(user in nodes for user in users)


def _kinds(nodes: Sequence[ir.Node]) -> tuple[list[int], list[ir.Attr]]:
    """The kind of each node, equal for nodes of equal attributes, and the attributes of the kinds."""
    known: dict[object, int] = {}
    kinds, names, attributes = [], [], []
    for node in nodes:
        key = (node.op_type, *sorted((a.name, repr(a.value)) for a in node.attributes.values()))
        if key not in known:
            known[key] = kind = len(known)
            names.append(node.op_type)
            attributes += [ir.Attr(f"{kind}.{a.name}", a.type, a.value) for a in node.attributes.values()]
        kinds.append(known[key])
    return kinds, [ir.Attr("kinds", ir.AttributeType.STRING, " ".join(names)), *attributes]


def _step(node: ir.Node, kind: int, numbers: dict[ir.Value, int]) -> list[int]:
    reads = [_NO_VALUE if value is None else numbers[value] for value in node.inputs]
    makes = [numbers[value] for value in node.outputs]
    return [kind, len(reads), *reads, len(makes), *makes]


def _free_overload(model: ir.Model) -> str:
    taken = {function.overload for function in model.functions.values() if function.name == CHAIN}
    return next(name for number in range(len(taken) + 1) if (name := str(number)) not in taken)
