# SPDX-License-Identifier: Apache-2.0
"""Self-attention over the key/value cache, shared by every decoder."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.rotary import RotaryEmbedding
from poptransformer.parallel import local_heads
from poptransformer.step import Step


class Attention(BaseLayer):
    """Attention from projected queries, keys and values to the attended values.

    Subclasses create the projections and call `attend`. With several replicas each has some of the heads: the
    attributes `num_heads` and `num_kv_heads` count those, and so do the N and K of shapes.

    Args:
        context: dotted path of the parent.
        name: attribute name in the Hugging Face module.
        layer_index: number of the layer; names its cache.
        num_heads: query heads of the model.
        num_kv_heads: key and value heads of the model.
        head_dim: H.
        scale: factor on the scores; `head_dim ** -0.5` by default.

    Raises:
        ConfigError: `num_heads` is not a multiple of `num_kv_heads`, or the replicas cannot share them out.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        layer_index: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float | None = None,
    ) -> None:
        super().__init__(context, name)
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ConfigError(
                f"{self.context}: {num_heads} attention heads cannot share {num_kv_heads} key/value heads. "
                "num_attention_heads must be a multiple of num_key_value_heads; check the checkpoint's config.json."
            )
        self.layer_index = layer_index
        self.num_heads, self.num_kv_heads = local_heads(self.build, self.context, num_heads, num_kv_heads)
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale

    def rotate(self, graph: Graph, x: ir.Value, step: Step, rotary: RotaryEmbedding, num_heads: int) -> ir.Value:
        """Rotates `[B, L, num_heads*H]` by the positions of this step."""
        cos, sin = step.shared(graph, "rotary", lambda: rotary(graph, step.position_ids, step.total_lengths))
        return ops.rotary_embedding(graph, x, cos, sin, num_heads, rotary.rotary_dim, rotary.interleaved)

    def attend(
        self,
        graph: Graph,
        step: Step,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        prefix_lengths: ir.Value | None = None,
    ) -> ir.Value:
        """Appends to this layer's cache and attends to it causally, but for a prefix.

        Args:
            graph: where the nodes go.
            step: the inputs of this step.
            query: `[B, L, N*H]`.
            key: `[B, L, K*H]`.
            value: `[B, L, K*H]`.
            prefix_lengths: int64 `[B]`, tokens at the beginning of each row that every token sees; a step must bring
                all of a prefix or nothing of it. None is causal attention.

        Returns:
            `[B, L, N*H]`.
        """
        cache = step.kv_cache(self.layer_index, self.num_kv_heads, self.head_dim)
        output, present_key, present_value = ops.cached_attention(
            graph,
            query,
            key,
            value,
            cache.key.past,
            cache.value.past,
            step.past_lengths,
            prefix_lengths,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            scale=self.scale,
        )
        cache.key.update(present_key)
        cache.value.update(present_value)
        return output
