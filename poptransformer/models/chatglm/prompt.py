# SPDX-License-Identifier: Apache-2.0
"""Prompt and answer of a GLM row: what belongs to the context, and where its tokens stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from poptransformer import ops
from poptransformer.checkpoint import HFConfig
from poptransformer.graph import Graph
from poptransformer.layers import RotaryEmbedding
from poptransformer.step import BATCH, StateSpec, Step


@dataclasses.dataclass(frozen=True)
class MarkIds:
    """Token ids that give a row its structure: `context [gMASK] BOS answer`, or with `[MASK]` inside the context."""

    bos: int
    mask: int
    gmask: int

    @classmethod
    def of(cls, config: HFConfig) -> MarkIds:
        """Reads them; the first checkpoints' config names BOS alone."""
        return cls(
            config.get("bos_token_id", 150004),
            config.get("mask_token_id", 150000),
            config.get("gmask_token_id", 150001),
        )


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the layers of one step must know.

    Attributes:
        lengths: int64 `[B]`, tokens before BOS; they see each other both ways.
        cos: fp32 `[B, L, H/2]`, of position and block position side by side.
        sin: the same.
    """

    lengths: ir.Value
    cos: ir.Value
    sin: ir.Value


class HalfPrecisionRotary(RotaryEmbedding):
    """Rotary angles of inverse frequencies that are rounded to fp16, as the checkpoint's buffers are."""

    def __init__(self, context: str | None, name: str | None, rotary_dim: int, max_positions: int) -> None:
        super().__init__(context, name, rotary_dim, {"rope_theta": 10000.0}, max_positions)
        self.frequencies = self.frequencies.astype(np.float16).astype(np.float32)


def read_prompt(graph: Graph, step: Step, marks: MarkIds, rotary: RotaryEmbedding) -> Prompt:
    """Finds each row's context in its first step, and places the tokens of this step.

    Tokens of the context stand at their index, with block position 0. All later ones stand at the index of the mask
    token, and their block position counts from 1 (GLM, https://arxiv.org/abs/2103.10360, section 2.3).

    Args:
        graph: where the nodes go.
        step: the inputs of this step; gets two states of one number per row.
        marks: which tokens to look for.
        rotary: angles of half of a head.
    """
    with graph.nameScope("prompt"):
        lengths, mask_positions = _context(graph, step, marks)
        starts = ops.unsqueeze(graph, lengths, [1])
        in_context = ops.less(graph, step.position_ids, starts)
        positions = ops.where(graph, in_context, step.position_ids, ops.unsqueeze(graph, mask_positions, [1]))
        block_positions = ops.maximum(graph, ops.add(graph, ops.sub(graph, step.position_ids, starts), 1), 0)
    angles = [rotary(graph, places, step.total_lengths) for places in (positions, block_positions)]
    with graph.nameScope("prompt"):
        cos, sin = (ops.concat(graph, list(pair), 2) for pair in zip(*angles, strict=True))
    return Prompt(lengths, cos, sin)


def _context(graph: Graph, step: Step, marks: MarkIds) -> tuple[ir.Value, ir.Value]:
    """Returns the context's length and the index of its mask token, int64 `[B]` each; later steps remember them."""
    has, first = _find(graph, step, [marks.bos, marks.gmask, marks.mask])
    (has_bos, has_gmask, _), (bos, gmask, mask) = (
        [ops.squeeze(graph, part, [1]) for part in ops.split(graph, found, [1] * 3)] for found in (has, first)
    )
    found = {
        "context_lengths": ops.where(graph, has_bos, bos, step.lengths),
        "mask_positions": ops.where(graph, has_gmask, gmask, mask),
    }
    is_first = ops.equal(graph, step.past_lengths, 0)
    known = []
    for name, value in found.items():
        state = step.state(StateSpec(f"past_{name}", f"present_{name}", "int64", (BATCH,)))
        known.append(ops.where(graph, is_first, value, state.past))
        state.update(known[-1])
    return known[0], known[1]


def _find(graph: Graph, step: Step, token_ids: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    """Returns which of T tokens each row of this step has, bool `[B, T]`, and where its first is, int64 `[B, T]`."""
    index = ops.sub(graph, step.position_ids, ops.unsqueeze(graph, step.past_lengths, [1]))
    real = ops.less(graph, index, ops.unsqueeze(graph, step.lengths, [1]))
    wanted = ops.constant(graph, np.array(token_ids, np.int64).reshape(1, 1, -1))
    is_wanted = ops.equal(graph, ops.unsqueeze(graph, step.input_ids, [2]), wanted)
    hits = ops.cast(graph, ops.logical_and(graph, is_wanted, ops.unsqueeze(graph, real, [2])), np.int64)
    has = ops.cast(graph, ops.reduce_max(graph, hits, [1], keepdims=False), np.bool_)
    return has, ops.argmax(graph, hits, 1, keepdims=False)
