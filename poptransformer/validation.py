# SPDX-License-Identifier: Apache-2.0
"""Checks of a graph that need no weights: validity, shapes, kernels, memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from poptransformer.errors import GraphError
from poptransformer.graph import DOMAIN
from poptransformer.recipe import Recipe
from poptransformer.validation_memory import memory_of_activations, memory_of_weights

if TYPE_CHECKING:
    import onnx_ir as ir

CPU = "CPUExecutionProvider"


@dataclasses.dataclass(frozen=True)
class Validation:
    """What the checks found.

    Attributes:
        parameters: numbers in all weights; with several replicas, of one of them.
        weight_bytes: what they take as the recipe stores them.
        activation_bytes: most that values take at one time, in fp32, in the order of the graph.
        sizes: what the graph's dimensions were taken to be.
        operators: nodes by operator.
        native: those of them that have a kernel of this package.
        unknown_shapes: values of which inference knows no shape, and `activation_bytes` nothing.
    """

    parameters: int
    weight_bytes: int
    activation_bytes: int
    sizes: Mapping[str, int]
    operators: Mapping[str, int]
    native: int
    unknown_shapes: int

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items()) or "as in the graph"
        nodes = sum(self.operators.values())
        lines = [
            "graph: valid, shapes inferred, every node has a kernel",
            f"nodes: {nodes} of {len(self.operators)} operators, {self.native} with kernels of poptransformer",
            f"weights: {self.parameters} parameters, {self.weight_bytes / 2**20:.2f} MiB as stored",
            f"activations: at most {self.activation_bytes / 2**20:.2f} MiB at a time ({sizes})",
        ]
        if self.unknown_shapes:
            lines.append(f"{self.unknown_shapes} values have shapes that depend on data and are not counted")
        return "\n".join(lines)


def validate(model: ir.Model, recipe: Recipe, sizes: Mapping[str, int] | None = None) -> Validation:
    """Checks a graph as layers wrote it; no weight is read.

    Args:
        model: the graph; the arrays of its weights may be of any content.
        recipe: how weights will be stored.
        sizes: sizes of the graph's named dimensions; those not given are 1.

    Raises:
        GraphError: it is not valid ONNX, shapes contradict each other, or a node has no kernel.
    """
    from poptransformer import passes

    passes.matmul_to_linear(model)
    parameters, weight_bytes = memory_of_weights(model, recipe)
    passes.attach_functions(model)
    proto = _without_weights(model)
    assumed = _set_sizes(proto, sizes or {})
    try:
        onnx.checker.check_model(proto)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"The graph is not valid: {' '.join(str(error).split())}") from error
    counts = _operators(inferred)
    native = sum(count for name, count in counts.items() if name.startswith(f"{DOMAIN}::"))
    activations, unknown = memory_of_activations(inferred.graph)
    return Validation(parameters, weight_bytes, activations, assumed, counts, native, unknown)


def check_stages(model: ir.Model, layer_per_ipu: Sequence[int], states: Mapping[str, str], anchor: str) -> None:
    """Cuts a graph into its pipeline stages; what goes from one to another must be able to.

    Args:
        model: the graph as layers wrote it.
        layer_per_ipu: blocks of each stage.
        states: see `passes.split_stages`, as for `anchor`.
        anchor: an input.

    Raises:
        GraphError: a value that goes from one stage to another is no fp32 tensor.
    """
    from poptransformer import passes

    passes.place_after_blocks(model)
    found = {segment.stage for segment in passes.split_stages(model, states, anchor)}
    if not found <= set(range(len(layer_per_ipu))):
        raise GraphError(f"The graph has nodes on stages {sorted(found)}, but layer_per_ipu has {len(layer_per_ipu)}.")


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with its large weights as inputs: checkers need their shapes alone."""
    from poptransformer.runtime.ort_session import large_weights, serialize

    proto = onnx.load_from_string(serialize(model, large_weights(model)))
    kept = []
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            kept.append(tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def _set_sizes(proto: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, int]:
    """Gives the inputs' named dimensions a size; returns them."""
    assumed = {}
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                name = dim.dim_param or "unnamed"
                assumed[name] = dim.dim_value = int(sizes.get(name, 1))
    known = [value for value in proto.graph.value_info if _fix(value, assumed)]  # inference finds the others anew
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(known)
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")  # inference puts sizes in the place of names
    return assumed


def _fix(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> bool:
    """Puts sizes in the place of a value's named dimensions; False where one has none."""
    tensor = value.type.tensor_type
    for dim in tensor.shape.dim:
        if not dim.HasField("dim_value"):
            if dim.dim_param not in sizes:
                return False
            dim.dim_value = sizes[dim.dim_param]
    return tensor.HasField("shape")


def _operators(proto: onnx.ModelProto) -> dict[str, int]:
    """Nodes by operator, in subgraphs too; raises for one without a kernel."""
    counts: collections.Counter[str] = collections.Counter()
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for node in _nodes(proto.graph):
        name = f"{node.domain}::{node.op_type}".removeprefix("::")
        counts[name] += 1
        if node.domain != DOMAIN and not _has_kernel(node.op_type, node.domain, versions.get(node.domain, 1)):
            raise GraphError(f"onnxruntime has no CPU kernel for {name} ({node.name}); build it from other operators.")
    return dict(counts.most_common())


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


@functools.cache
def _kernels() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Versions of each operator for which onnxruntime has a CPU kernel."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], list[tuple[int, int]]] = collections.defaultdict(list)
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == CPU:
            found[kernel.domain.removeprefix("ai.onnx").lstrip("."), kernel.op_name].append(kernel.version_range)
    return found


def _has_kernel(op_type: str, domain: str, version: int) -> bool:
    """Whether there is a kernel, or something that onnxruntime puts in its place before it runs a graph."""
    if (domain, op_type) == ("", "Constant"):
        return True
    try:
        schema: Any = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return False
    since = schema.since_version
    ranges = _kernels().get((domain, op_type), [])
    return (
        any(low <= since <= high for low, high in ranges)
        or schema.has_function
        or schema.has_context_dependent_function
    )
