# SPDX-License-Identifier: Apache-2.0
"""From a function that calls layers to a graph, and the passes that every graph goes through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.errors import ConfigError, GraphError
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.placement import check_placement
from poptransformer.quantization_report import QuantizationReport

if TYPE_CHECKING:
    import onnx_ir as ir

GraphFunction = Callable[[Graph], Mapping[str, "ir.Value"]]


@dataclasses.dataclass(frozen=True)
class BuiltGraph:
    """A graph as layers wrote it.

    Attributes:
        model: the graph.
        divided: inputs and outputs of which replicas have different parts, and along which axis.
        blocks: encoder and decoder layers, which `layer_per_ipu` places.
    """

    model: ir.Model
    divided: Mapping[str, int]
    blocks: int


def build_program(make: GraphFunction, build: Build, name: str = "model") -> BuiltGraph:
    """Builds a graph of layers, as they wrote it.

    Args:
        make: adds inputs and layers to a graph; returns the outputs by name.
        build: what the layers may ask; its `graph` is set here.
        name: of the graph.

    Raises:
        ConfigError: `layer_per_ipu` does not add up to the graph's blocks.
        GraphError: `make` returned no outputs.
    """
    import onnx_ir as ir

    from poptransformer.layers.heads import divided_axis

    graph = Graph(name)
    with use_build(dataclasses.replace(build, graph=graph)):
        outputs = make(graph)
        if not isinstance(outputs, Mapping) or not outputs:
            raise GraphError(f"The function that builds {name} returned {outputs!r}; expected outputs by name.")
        named = [(str(value.name), value) for value in graph.ir_graph.inputs] + list(outputs.items())
        divided = {key: axis for key, value in named if (axis := divided_axis(value)) is not None}
        for output, value in outputs.items():
            graph.output(value, output)
    blocks = max(graph.blocks, default=-1) + 1
    if build.layer_per_ipu is not None:
        check_placement(build.layer_per_ipu, blocks)
    model = ir.Model(
        graph.ir_graph,
        ir_version=IR_VERSION,
        producer_name="poptransformer",
        producer_version=poptransformer.__version__,
    )
    return BuiltGraph(model, divided, blocks)


def run_passes(model: ir.Model, build: Build, fuse: bool = True) -> QuantizationReport:
    """Runs over a program what every model of this package goes through: products, precision, fusion, bodies."""
    from poptransformer import passes

    if build.recipe.is_calibrated:
        raise ConfigError(
            "A program of layers has no tokenizer to calibrate with; use a precision without calibration."
        )
    passes.matmul_to_linear(model)
    report = passes.quantize(model, build.recipe)
    if len(build.layer_per_ipu or ()) > 1:
        passes.place_after_blocks(model)
    if fuse:
        passes.fuse(model)
    passes.attach_functions(model)
    passes.name_nested_functions(model)
    return report
