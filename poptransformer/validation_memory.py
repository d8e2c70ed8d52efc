# SPDX-License-Identifier: Apache-2.0
"""Memory of a graph, from the shapes of its weights and values."""

from __future__ import annotations

import collections
import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

from poptransformer.recipe import Choice, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

_HALF = ("fp16", "bf16")


def memory_of_weights(model: ir.Model, recipe: Recipe) -> tuple[int, int]:
    """Returns the numbers in all weights, and their bytes as a recipe stores them; vectors stay as they are.

    Args:
        model: the graph, whose products with weights are `Linear`.
        recipe: how weights will be stored.
    """
    from poptransformer.passes.quantize import planned_choices

    chosen = planned_choices(model, recipe)
    count, total = 0, 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        is_constant = name.rpartition("/")[2].startswith("const_")  # a number in the graph, as a scale
        if tensor is None or is_constant or not tensor.dtype.is_floating_point():
            continue
        count += tensor.size
        total += _stored_bytes(tensor, chosen[name]) if name in chosen else tensor.nbytes
    return count, total


def _stored_bytes(tensor: ir.TensorProtocol, choice: Choice) -> int:
    """Bytes of a weight matrix with its scales and offsets."""
    from poptransformer.passes.quantize import weight_spec
    from poptransformer.quantization.layout import blocks_per_row

    if choice.is_float:
        return tensor.size * 2 if choice.precision in _HALF else _float_bytes(tensor)
    spec = weight_spec(choice)
    rows, depth = tensor.shape.numpy()
    scales = rows * blocks_per_row(depth, spec.block)  # one scale of a tensor stands in every row
    scale_bytes = spec.kind.scale_dtype.itemsize * (1 if spec.symmetric else 2)
    return math.ceil(rows * depth * spec.kind.bits / 8) + scales * scale_bytes


def _float_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of a matrix that stays as the checkpoint has it."""
    from poptransformer.graph import WeightTensor

    return tensor.size * tensor.array.dtype.itemsize if isinstance(tensor, WeightTensor) else tensor.nbytes


def memory_of_activations(graph: onnx.GraphProto) -> tuple[int, int]:
    """Returns the most bytes of values that are alive at one time, and how many values have no known shape."""
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


def host_memory(one_replica: int, state_bytes: int, replicas: int, layer_per_ipu: Sequence[int]) -> str:
    """Says what a model takes of this computer's memory, and what is free.

    Args:
        one_replica: bytes of a replica's weights and activations.
        state_bytes: what one replica hands from step to step.
        replicas: how many there are; stages share what a replica has.
        layer_per_ipu: blocks of each stage.
    """
    total = replicas * (one_replica + state_bytes)
    ranks = replicas * max(1, len(layer_per_ipu))
    divided = f" on {ranks} ranks ({replicas} x {max(1, len(layer_per_ipu))} stages)" if ranks > 1 else ""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"host memory: {total / 2**20:.2f} MiB{divided}; {free / 2**20:.0f} MiB are free here"
