# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: frequencies from the config, angles computed in the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.build import check_choice
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer

ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


def inverse_frequencies(theta: float, rotary_dim: int) -> np.ndarray:
    """Returns `theta ** (-2i / rotary_dim)`, fp32 `[rotary_dim / 2]` (RoFormer, https://arxiv.org/abs/2104.09864)."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(rotary_dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)


def llama3_frequencies(frequencies: np.ndarray, rope: Mapping[str, Any]) -> np.ndarray:
    """Scales long wavelengths as Llama 3.1 does (transformers `_compute_llama3_parameters`)."""
    factor = rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequencies
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(wavelength > context / low, frequencies / factor, frequencies)
    medium = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(medium, blended, scaled).astype(np.float32)


class RotaryEmbedding(BaseLayer):
    """Angles of the rotary embedding, shared by all layers of a model.

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        rotary_dim: columns of a head that are rotated.
        rope: `rope_type` (default, linear, dynamic, llama3), `rope_theta` and what the type needs.
        max_position_embeddings: positions the model was trained for; `dynamic` stretches beyond them.
        interleaved: whether the pairs that are rotated are neighbours; otherwise column i belongs to i + rotary_dim/2.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        rotary_dim: int,
        rope: Mapping[str, Any],
        max_position_embeddings: int,
        interleaved: bool = False,
    ) -> None:
        super().__init__(context, name)
        self.rotary_dim = rotary_dim
        self.interleaved = interleaved
        self.rope = dict(rope)
        self.rope_type = self.rope.get("rope_type", "default")
        check_choice("rope_type", self.rope_type, ROPE_TYPES)
        self.max_position_embeddings = max_position_embeddings
        frequencies = inverse_frequencies(self.rope["rope_theta"], rotary_dim)
        if self.rope_type == "linear":
            frequencies = frequencies / np.float32(self.rope["factor"])
        elif self.rope_type == "llama3":
            frequencies = llama3_frequencies(frequencies, self.rope)
        self.frequencies = frequencies.astype(np.float32)

    def __call__(self, graph: Graph, position_ids: ir.Value, total_lengths: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns cosine and sine, fp32 `[B, L, rotary_dim / 2]`.

        Args:
            graph: where the nodes go.
            position_ids: int64 `[B, L]`.
            total_lengths: int64 `[B]`, tokens of each row including this step; only `dynamic` looks at it.
        """
        with graph.nameScope(self.context):
            if self.rope_type == "dynamic":
                frequencies = self._dynamic_frequencies(graph, total_lengths)
            else:
                frequencies = ops.constant(graph, self.frequencies.reshape(1, 1, -1))
            positions = ops.unsqueeze(graph, ops.cast(graph, position_ids, np.float32), [2])
            angles = ops.mul(graph, positions, frequencies)
            return ops.cos(graph, angles), ops.sin(graph, angles)

    def _dynamic_frequencies(self, graph: Graph, total_lengths: ir.Value) -> ir.Value:
        """NTK scaling by each row's own length (transformers `_compute_dynamic_ntk_parameters`); `[B, 1, R/2]`."""
        factor, dim, trained = (
            float(self.rope["factor"]),
            self.rotary_dim,
            float(self.max_position_embeddings),
        )
        length = ops.maximum(graph, ops.cast(graph, total_lengths, np.float32), trained)
        stretch = ops.sub(graph, ops.div(graph, ops.mul(graph, length, factor), trained), factor - 1.0)
        base = ops.mul(graph, ops.pow(graph, stretch, dim / (dim - 2)), float(self.rope["rope_theta"]))
        exponents = np.arange(0, dim, 2, dtype=np.float32).reshape(1, 1, -1) / np.float32(dim)
        power = ops.pow(graph, ops.unsqueeze(graph, base, [1, 2]), ops.constant(graph, exponents))
        return ops.div(graph, 1.0, power)
