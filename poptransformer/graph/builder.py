# SPDX-License-Identifier: Apache-2.0
"""`Graph`: what layers add nodes to. The only module that knows onnxscript's GraphBuilder."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from poptransformer.errors import GraphError
from poptransformer.graph.functions import DOMAIN, DOMAIN_VERSION, Variant, function_spec
from poptransformer.graph.weight import float_weight

OPSET = 24
IR_VERSION = 11
# GraphBuilder leaves inference's complaint here instead of raising it, and the files would show it.
_INFERENCE_ERROR = "pkg.onnxscript.shape_inference_error"

Dim = int | str | None
_ONLY = Variant()  # of an op with a single body


class _ScopedBuilder(GraphBuilder):
    """GraphBuilder that names nodes and values after the scope, `model/layers.3/self_attn/MatMul`."""

    def __init__(self, graph: ir.Graph, owner: Graph, parent: GraphBuilder | None = None) -> None:
        super().__init__(graph, parent=parent)
        self.owner = owner

    def _generate_node_name(self, op_type: str) -> str:
        return self.owner.unique_name(op_type)

    def _qualify_value_name(self, name: str) -> str:
        return self.owner.unique_name(name)

    def _annotate_node(self, node: ir.Node) -> None:
        node.metadata_props.update(self.owner.annotations)

    def _infer_shapes(self, node: ir.Node) -> None:
        if node.domain == DOMAIN:  # the functions that add our own ops set the shapes themselves
            return
        super()._infer_shapes(node)
        error = node.metadata_props.pop(_INFERENCE_ERROR, "")
        unknown_op = error.startswith("No schema") and not node.domain
        missing = "is marked single but has an empty string" in error  # None where a value is needed
        if unknown_op or missing or (error.startswith("[") and not any(map(_is_open, node.attributes.values()))):
            raise ValueError(error)


def _is_open(attribute: ir.Attr) -> bool:
    """Whether inference on a node alone cannot know what this attribute holds."""
    return attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class Graph:
    """An ONNX graph under construction.

    Values are `onnx_ir.Value` objects: they carry name, dtype and shape, and are what `ops` take and return.

    Attributes:
        ir_graph: the graph.
        annotations: metadata that new nodes get.
        blocks: numbers of the blocks that layers have placed, for `layer_per_ipu`.
    """

    def __init__(self, name: str = "model") -> None:
        self.ir_graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, DOMAIN: DOMAIN_VERSION})
        self.builder: GraphBuilder = _ScopedBuilder(self.ir_graph, self)
        self._scope: tuple[str, ...] = ()
        self._used_names: dict[str, int] = {}
        self.annotations: dict[str, str] = {}
        self.blocks: set[int] = set()

    @classmethod
    def over(cls, ir_graph: ir.Graph) -> Graph:
        """Continues a finished graph, in place.

        Its constants move below `step/`: the builder names those to come after their values, as it did with these.
        """
        graph = cls()
        graph.ir_graph = ir_graph
        graph.builder = _ScopedBuilder(ir_graph, graph)
        for name, value in list(ir_graph.initializers.items()):
            if name.startswith("const_"):
                del ir_graph.initializers[name]
                value.name = f"step/{name}"
                ir_graph.register_initializer(value)
        return graph

    # -- names and placement ------------------------------------------------------------------------------------

    def unique_name(self, name: str) -> str:
        """Returns `name` below the current scope, numbered where it is taken."""
        full = "/".join((*self._scope, name))
        count = self._used_names.get(full, 0)
        self._used_names[full] = count + 1
        return full if count == 0 else f"{full}_{count}"

    @contextlib.contextmanager
    def nameScope(self, name: str | None) -> Iterator[None]:  # noqa: N802 - PopART's name, part of the interface
        """Puts the nodes of the block below `name`.

        A dotted name that continues the current scope (a layer's whole context, `model.layers.3.mlp` inside
        `model.layers.3`) is taken as absolute, any other one is appended.
        """
        before = self._scope
        parts = tuple(split_context(name)) if name else ()
        self._scope = parts if parts[: len(before)] == before else before + parts
        try:
            yield
        finally:
            self._scope = before

    @contextlib.contextmanager
    def rootScope(self) -> Iterator[None]:  # noqa: N802 - named like its sibling
        """Puts the nodes of the block outside of every scope."""
        before, self._scope = self._scope, ()
        try:
            yield
        finally:
            self._scope = before

    @contextlib.contextmanager
    def annotate(self, **properties: object) -> Iterator[None]:
        """Adds metadata to every node of the block; None leaves a property as it is."""
        before = self.annotations
        self.annotations = before | {k: str(v) for k, v in properties.items() if v is not None}
        try:
            yield
        finally:
            self.annotations = before

    def virtualGraph(self, ipu: int) -> contextlib.AbstractContextManager[None]:  # noqa: N802
        """Places the nodes of the block on IPU number `ipu`."""
        return self.annotate(ipu=ipu)

    def pipelineStage(self, stage: int) -> contextlib.AbstractContextManager[None]:  # noqa: N802
        """Assigns the nodes of the block to a pipeline stage."""
        return self.annotate(pipeline_stage=stage)

    # -- values -------------------------------------------------------------------------------------------------

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Adds a graph input; strings in `shape` are symbolic dimensions."""
        return self.builder.input(name, dtype=dtype, shape=list(shape))

    def output(self, value: ir.Value, name: str) -> ir.Value:
        """Makes `value` a graph output called `name`."""
        if value.producer() is None or value.is_graph_output():
            value = self.op("Identity", value)
        value.name = name
        self.ir_graph.outputs.append(value)
        return value

    def initializer(self, array: np.ndarray, name: str) -> ir.Value:
        """Binds an array as an initializer called `name`, without reading it.

        Raises:
            GraphError: an initializer of that name exists already.
        """
        if name in self.ir_graph.initializers:
            raise GraphError(
                f"The weight {name} is bound twice. Give each layer its own context and name, or reuse the value."
            )
        return self.builder.initializer(float_weight(array, name), name, qualify=False)

    def constant(self, value: Any, dtype: Any = None) -> ir.Value:
        """Adds a small constant, kept inside the graph."""
        array = np.asarray(value, dtype=dtype)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return self.op("Constant", value=ir.tensor(array))

    # -- nodes --------------------------------------------------------------------------------------------------

    def op(self, op_type: str, *inputs: Any, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns its output value, or a list of them where there are several.

        Args:
            op_type: operator name, e.g. `MatMul`.
            *inputs: values; Python numbers and lists become constants of the type that the operator wants.
            domain: operator domain, "" for standard ONNX.
            outputs: number of outputs.
            **attributes: ONNX attributes.

        Raises:
            GraphError: the operator rejects these inputs.
        """
        version = DOMAIN_VERSION if domain == DOMAIN else self.ir_graph.opset_imports.get(domain)
        attributes = {k: v for k, v in attributes.items() if v is not None}
        try:
            result = self.builder.call_op(
                op_type, list(inputs), attributes, domain=domain, version=version, outputs=outputs
            )
        except (ValueError, TypeError) as error:
            shapes = [f"{v.dtype}{v.shape}" if isinstance(v, ir.Value) else repr(v) for v in inputs]
            scope = "/".join(self._scope) or "the main graph"
            raise GraphError(f"{op_type} in {scope} cannot take ({', '.join(shapes)}): {error}") from error
        return list(result) if isinstance(result, Sequence) else result

    def subgraph(
        self, trace: Callable[..., Sequence[ir.Value]], inputs: Sequence[ir.Value], name: str = "body"
    ) -> ir.Graph:
        """Builds a graph-valued attribute (a Loop or If body) by calling `trace(*inputs)`.

        Values and weights of the surrounding graph can be used inside.
        """
        body = ir.Graph(list(inputs), [], nodes=[], name=name, opset_imports=dict(self.ir_graph.opset_imports))
        with self.inside(body):
            outputs = [
                v if v.producer() is not None and v.graph is body else self.op("Identity", v) for v in trace(*inputs)
            ]
        body.outputs.extend(outputs)
        return body

    @contextlib.contextmanager
    def inside(self, body: ir.Graph) -> Iterator[None]:
        """Adds the nodes of the block to `body`, a subgraph of this graph."""
        outer = self.builder
        self.builder = _ScopedBuilder(body, self, parent=outer)
        try:
            yield
        finally:
            self.builder = outer


def branch(op: Any, trace: Callable[[Any], Sequence[ir.Value]], name: str) -> ir.Graph:
    """Builds one branch of an `If` inside a function body; `trace(op)` returns the branch's outputs."""
    owner = op.builder.owner
    return owner.subgraph(lambda: trace(owner.builder.op), [], name=name)


@functools.cache
def onnx_function(name: str, variant: Variant = _ONLY) -> ir.Function:
    """Builds the model-local ONNX function of our op `name` from its registered body.

    Args:
        name: op type.
        variant: which of its bodies, for an op that has several.
    """
    spec = function_spec(name)
    graph = Graph(f"{name}_body")
    inputs = [ir.Value(name=n) for n in spec.inputs]
    graph.ir_graph.inputs.extend(inputs)
    absent = set(spec.optional) - set(variant.present)
    outputs = spec.body(graph.builder.op, *(None if v.name in absent else v for v in inputs), **dict(variant.constants))
    graph.ir_graph.outputs.extend(outputs if isinstance(outputs, Sequence) else [outputs])
    _initializers_to_constants(graph.ir_graph)
    attributes = {n: ir.Attr(n, t, None) for n, t in spec.attributes.items()}
    return ir.Function(domain=DOMAIN, name=name, overload=variant.overload, graph=graph.ir_graph, attributes=attributes)


def _initializers_to_constants(graph: ir.Graph) -> None:
    """Turns constants into nodes: the body of an ONNX function cannot hold initializers."""
    nodes = []
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        attribute = ir.Attr("value", ir.AttributeType.TENSOR, value.const_value)
        nodes.append(ir.Node("", "Constant", [], [attribute], outputs=[value], name=f"{name}/Constant"))
    graph.insert_before(graph.node(0), nodes)


def split_context(context: str) -> list[str]:
    """Splits `model.layers.3.self_attn` into scopes: `model`, `layers.3`, `self_attn`."""
    return [part for part in re.split(r"[./](?!\d+(?:[./]|$))", context) if part]
