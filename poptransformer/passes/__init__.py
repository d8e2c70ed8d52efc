# SPDX-License-Identifier: Apache-2.0
"""Passes over the float graph: layout, precision, fusion, and the functions that define our own ops."""

from poptransformer.passes.functions import attach_functions
from poptransformer.passes.fuse import fuse
from poptransformer.passes.fuse_linear import SCOPES
from poptransformer.passes.linear import matmul_to_linear
from poptransformer.passes.precision import store_weights
from poptransformer.passes.quantize import quantize

__all__ = ["SCOPES", "attach_functions", "fuse", "matmul_to_linear", "quantize", "store_weights"]
