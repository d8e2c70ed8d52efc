# SPDX-License-Identifier: Apache-2.0
"""Checks of a graph that need no weights: validity, shapes, kernels, memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import onnx

from poptransformer.errors import GraphError
from poptransformer.graph import DOMAIN
from poptransformer.recipe import Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

CPU = "CPUExecutionProvider"
# Bits of a weight: its codes, and the scales and offsets of its blocks.
_BITS = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0, "int8": 8.5, "int4": 5.0, "fp8": 8.0, "fp8_weight": 8.0}


@dataclasses.dataclass(frozen=True)
class Validation:
    """What the checks found.

    Attributes:
        parameters: numbers in all weights.
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

    parameters, weight_bytes = _weights(model, recipe)
    passes.matmul_to_linear(model)
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
    activations, unknown = _activations(inferred.graph)
    return Validation(parameters, weight_bytes, activations, assumed, counts, native, unknown)


def _weights(model: ir.Model, recipe: Recipe) -> tuple[int, int]:
    """Parameters, and bytes as the recipe stores them; vectors stay fp32."""
    count, bits = 0, 0.0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        rule = recipe.match([name]) if len(tensor.shape) == 2 else None
        count += tensor.size
        bits += tensor.size * (_BITS[rule[1].precision] if rule is not None else 32)
    return count, math.ceil(bits / 8)


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


def _activations(graph: onnx.GraphProto) -> tuple[int, int]:
    """The most bytes of values that are alive at one time, and how many values have no known shape."""
    weights = {tensor.name for tensor in graph.initializer}
    infos = itertools.chain(graph.value_info, graph.output)
    sizes = {info.name: _bytes(info) for info in infos if info.name not in weights}
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    alive, most, unknown = 0, 0, 0
    ends: dict[int, int] = collections.defaultdict(int)
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            size = sizes.get(name)
            unknown += size is None
            alive += size or 0
            ends[last.get(name, index)] += size or 0
        most = max(most, alive)
        alive -= ends.pop(index, 0)
    return most, unknown


def _bytes(info: onnx.ValueInfoProto) -> int | None:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    size = math.prod(dim.dim_value for dim in tensor.shape.dim)
    return size * onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
