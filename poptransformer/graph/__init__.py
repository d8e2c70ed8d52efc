# SPDX-License-Identifier: Apache-2.0
"""The graph under construction: scopes, nodes, initializers and placement."""

from poptransformer.graph.builder import IR_VERSION, OPSET, Graph, branch, onnx_function
from poptransformer.graph.functions import (
    DOMAIN,
    FunctionSpec,
    Variant,
    function_names,
    function_spec,
    register_function,
)
from poptransformer.graph.weight import WeightTensor, float_weight

__all__ = [
    "DOMAIN",
    "IR_VERSION",
    "OPSET",
    "FunctionSpec",
    "Graph",
    "Variant",
    "WeightTensor",
    "branch",
    "float_weight",
    "function_names",
    "function_spec",
    "onnx_function",
    "register_function",
]
