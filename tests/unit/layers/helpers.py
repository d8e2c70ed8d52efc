# SPDX-License-Identifier: Apache-2.0
"""Builds small graphs from single layers, and runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from poptransformer.build import Build, use_build
from poptransformer.checkpoint import StateDict
from poptransformer.graph import IR_VERSION, Graph

MODES = ("shard", "tp")


@contextlib.contextmanager
def building(weights: Mapping[str, np.ndarray], model_type: str = "shard") -> Iterator[Build]:
    """A build over a checkpoint of these weights."""
    state_dict = StateDict.wrap(weights, "a test checkpoint")
    with use_build(Build(graph=Graph(), state_dict=state_dict, model_type=model_type)) as build:
        yield build


def run_layer(make: Callable[[], Any], x: np.ndarray, weights: Mapping[str, np.ndarray], model_type: str) -> np.ndarray:
    """Returns what a layer maps `x` to, computed by onnxruntime."""
    with building(weights, model_type) as build:
        graph = build.graph
        assert graph is not None
        layer = make()
        graph.output(layer(graph, graph.input("x", ir.DataType.FLOAT, list(x.shape))), "y")
    model = ir.serde.serialize_model(ir.Model(graph.ir_graph, ir_version=IR_VERSION))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]
