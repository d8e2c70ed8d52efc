# SPDX-License-Identifier: Apache-2.0
"""Passes over the float graph: layout, precision, fusion, and the functions that define our own ops."""

from poptransformer.passes.caches import store_caches
from poptransformer.passes.chain import chain
from poptransformer.passes.choose_early import choose_early
from poptransformer.passes.functions import attach_functions
from poptransformer.passes.fuse import fuse
from poptransformer.passes.linear import matmul_to_linear
from poptransformer.passes.nested import name_nested_functions
from poptransformer.passes.place import place_after_blocks
from poptransformer.passes.precision import store_weights
from poptransformer.passes.quantize import quantize
from poptransformer.passes.stages import split_stages

__all__ = [
    "attach_functions",
    "chain",
    "choose_early",
    "fuse",
    "matmul_to_linear",
    "name_nested_functions",
    "place_after_blocks",
    "quantize",
    "split_stages",
    "store_caches",
    "store_weights",
]
