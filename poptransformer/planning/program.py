# SPDX-License-Identifier: Apache-2.0
"""What a program of layers would need on emulated IPUs, from shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from poptransformer import passes
from poptransformer.build import Build
from poptransformer.errors import ConfigError
from poptransformer.ipu.checks import problems, warnings
from poptransformer.ipu.device import Device
from poptransformer.ipu.explain import describe, footer, milliseconds
from poptransformer.ipu.plan import evaluate
from poptransformer.ipu.planner import replica_variants
from poptransformer.ipu.stage import Workload
from poptransformer.planning.model import step_graph
from poptransformer.program_graph import GraphFunction, build_program
from poptransformer.state import BATCH, TOKENS

_LOOPS = (
    "Not counted: what {} Loop nodes do, whose sizes depend on data (packed rows, say), as an IPU's program must not. "
    "Plan with padded rows."
)
_OPEN = (BATCH, TOKENS)  # dimensions that a workload gives a size


def program_report(make: GraphFunction, build: Build, device: Device, sizes: Mapping[str, int]) -> Sequence[str]:
    """Returns memory and time of one call, in lines.

    Args:
        make: adds inputs and layers to a graph; returns the outputs by name.
        build: its state dict (shapes are enough), recipe, replicas and stages.
        device: the IPU.
        sizes: sizes of the graph's named dimensions; those not given are 1.

    Raises:
        ConfigError: it does not fit, or has no blocks to place.
    """
    built = build_program(make, dataclasses.replace(build, layer_per_ipu=None, replica=0))
    if not built.blocks:
        raise ConfigError(
            "The graph has no blocks that an IPU could hold. Call its layers under `self.block_scope(graph, index)`, "
            "as TransformerEncoder and TransformerDecoder do."
        )
    loops = sum(node.op_type == "Loop" for node in built.model.graph)
    passes.matmul_to_linear(built.model)
    _set_sizes(built.model.graph, sizes)
    graph = step_graph(built.model.graph, build.recipe, False, build.num_replicas)
    tokens = int(sizes.get(TOKENS, 1))
    workload = Workload(int(sizes.get(BATCH, 1)), tokens, tokens)
    variants = replica_variants(graph, device, workload)
    plans = [evaluate(replica, build.layer_per_ipu or [built.blocks]) for replica in variants]
    plan = next((plan for plan in plans if plan.fits), plans[-1])
    worst, limit = plan.worst, device.tile_bytes
    found = problems(plan, graph)
    if found:
        raise ConfigError(f"The graph does not fit on {device.name}: {found[0]}")
    return [
        f"Emulated on {device.name}: {describe(plan)}",
        f"Fullest tile: {worst.bytes:,.0f} of {limit:,} B ({worst.bytes / limit:.0%}) on stage {worst.index}, "
        f"{worst.content}",
        f"One call: {milliseconds(device.seconds(plan.prompt.total))}",
        *warnings(plan),
        *([_LOOPS.format(loops)] if loops else []),
        footer(),
    ]


def _set_sizes(graph: ir.Graph, sizes: Mapping[str, int]) -> None:
    """Puts sizes in the place of all named dimensions that a workload does not give one."""
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_size(dim, sizes) for dim in value.shape])


def _size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None or dim.value in _OPEN:
        return dim
    return int(sizes.get(str(dim.value), 1))
