# SPDX-License-Identifier: Apache-2.0
"""Turns the graph that layers wrote into fewer, larger ops; what it computes stays the same."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer.passes.fuse_linear import fuse_linear


def fuse(model: ir.Model) -> None:
    """Fuses what the native library has one kernel for.

    Each fused op's function body consists of the nodes that it replaces, so the model still runs without the library.

    Args:
        model: the model to change, after all passes over weights and before `attach_functions`.
    """
    fuse_linear(model)
