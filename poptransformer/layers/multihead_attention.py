# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention of the layers API, as a graph."""

from __future__ import annotations

import onnx_ir as ir

from poptransformer import ops
from poptransformer.attention_rules import MAX_COSINE_SCALE, check_attention, score_scale
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.layers.embedding_positions import RotaryPositionEmbeddingHelper, StepBias
from poptransformer.layers.heads import HeadShare, joined_heads, split_heads
from poptransformer.layers.linear import Linear
from poptransformer.layers.masks import additive_mask, combined, for_past
from poptransformer.layers.step_attention import attend_in_step
from poptransformer.layers.training_only import check_training_only
from poptransformer.parallel import Heads, Share, take
from poptransformer.step import Step

KeyValue = tuple[ir.Value, ir.Value]
_STEP_ALONE = (
    "With step, attention is causal over the engine's cache: q, k and v must be one value, masks, past_kv, "
    "need_weights and cache_present_kv must be left out, and position_bias is what get_step_bias returns."
)


class MultiheadAttention(BaseLayer):
    """`poptransformer.nn.MultiheadAttention` as a graph, with the weights of its state dict.

    With several replicas each has some of the heads, in the projections and in the keys and values of earlier calls.
    A mask or bias with an axis of heads may hold all of them or the replica's own.

    Args:
        context: dotted path of the parent.
        name: attribute name in the module.
        embed_dim: see `poptransformer.nn.MultiheadAttention`, as for all that follow.
        num_heads: N.
        inner_dim: columns of all heads together; None is `embed_dim`.
        dropout: has no effect here.
        batch_first: must be true.
        add_bias_kv: must be false.
        add_zero_attn: must be false.
        kdim: columns of keys; None is `embed_dim`.
        vdim: columns of values; None is `embed_dim`.
        use_projection_bias: biases of the projections of queries, keys and values.
        use_ffn_bias: bias of the output projection.
        attention_type: `scaled_dot_product`, `dot_product` or `scaled_cosine`.
        scale_qk_dot_by_d: divide scores by H in place of its root.
        scale_qk_dot_by_layer_idx: divide scores by `layer_idx + 1`.
        **training_only: arguments that have no effect here.

    Raises:
        ConfigError: the arguments contradict each other, or replicas cannot share the heads.
    """

    def __init__(
        self,
        context: str | None,
        name: str | None,
        embed_dim: int,
        num_heads: int,
        inner_dim: int | None = None,
        dropout: float = 0.0,
        batch_first: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        use_projection_bias: bool | None = None,
        use_ffn_bias: bool = False,
        attention_type: str = "scaled_dot_product",
        scale_qk_dot_by_d: bool = False,
        scale_qk_dot_by_layer_idx: bool = False,
        **training_only: object,
    ) -> None:
        super().__init__(context, name)
        check_attention(embed_dim, num_heads, inner_dim, batch_first, add_bias_kv, add_zero_attn, attention_type)
        check_training_only(type(self).__name__, training_only)
        inner_dim = inner_dim or embed_dim
        self.heads = HeadShare(self.context, num_heads)
        self.num_heads = self.heads.count
        self.head_dim = inner_dim // num_heads
        self.attention_type = attention_type
        self.scale = score_scale(self.head_dim, attention_type, scale_qk_dot_by_d)
        self.scale_qk_dot_by_layer_idx = scale_qk_dot_by_layer_idx
        bias, heads = bool(use_projection_bias), Heads(self.head_dim, num_heads)
        self.proj_q_dense_layer = Linear(self.context, "proj_q_dense_layer", embed_dim, inner_dim, bias, heads)
        self.proj_k_dense_layer = Linear(self.context, "proj_k_dense_layer", kdim or embed_dim, inner_dim, bias, heads)
        self.proj_v_dense_layer = Linear(self.context, "proj_v_dense_layer", vdim or embed_dim, inner_dim, bias, heads)
        self.proj_output_dense_layer = Linear(
            self.context, "proj_output_dense_layer", inner_dim, embed_dim, use_ffn_bias, "end"
        )

    def collect_bind_layer_weights(self) -> None:
        if self.attention_type == "scaled_cosine":
            scale = self.get_param_from_state_dict(self.key("logits_scale"), [self.heads.total, 1, 1])
            scale = take(scale, self.heads.share, Share.whole(1), Share.whole(1))
            self.logits_scale_id = self.add_initialized_input_tensor(scale, self.key("logits_scale"))

    def __call__(
        self,
        graph: Graph,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        attn_mask: ir.Value | None = None,
        key_padding_mask: ir.Value | None = None,
        need_weights: bool = False,
        average_attn_weights: bool = True,
        past_kv: KeyValue | None = None,
        cache_present_kv: bool = False,
        past_kv_self_attn: bool = True,
        position_bias: ir.Value | StepBias | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        layer_idx: int | None = None,
        step: Step | None = None,
    ) -> ir.Value | tuple[ir.Value | KeyValue, ...]:
        """Returns what `poptransformer.nn.MultiheadAttention` does for the same arguments.

        With `step`, in a model of `poptransformer.models`, the layer attends causally to itself and to the tokens of
        earlier steps, which it keeps in the engine's cache as number `layer_idx`. It takes `q` then, and as a position
        bias what `EmbeddingLayer.get_step_bias` returns.
        """
        rotary = rotary_position_embedding_helper
        if rotary is not None and position_bias is not None:
            raise ConfigError(
                "rotary_position_embedding_helper and position_bias exclude each other; give one of them."
            )
        with graph.nameScope(self.context):
            if step is not None:
                others = (attn_mask, key_padding_mask, past_kv)
                has_others = need_weights or cache_present_kv or any(other is not None for other in others)
                if has_others or isinstance(position_bias, ir.Value) or q is not k or q is not v:
                    raise ConfigError(_STEP_ALONE)
                return self._in_step(graph, q, step, rotary, layer_idx, position_bias)
            if past_kv is not None:
                past_kv = self.heads.own_past(graph, past_kv[0]), self.heads.own_past(graph, past_kv[1])
            past_key = past_kv[0] if past_kv is not None and past_kv_self_attn else None
            query = self._heads(graph, self.proj_q_dense_layer(graph, q), rotary, past_key)
            if past_kv is not None and not past_kv_self_attn:
                key, value = past_kv
            else:
                key = self._heads(graph, self.proj_k_dense_layer(graph, k), rotary, past_key)
                value = self._heads(graph, self.proj_v_dense_layer(graph, v))
                if past_kv is not None:
                    key, value = (ops.concat(graph, pair, 2) for pair in zip(past_kv, (key, value), strict=True))
            if position_bias is not None and not isinstance(position_bias, ir.Value):
                raise ConfigError("A position bias of get_step_bias needs step in the call; see compute_position_bias.")
            biases = self._biases(graph, attn_mask, key_padding_mask, position_bias, past_key, key)
            weights = self._weights(graph, query, key, combined(graph, biases), layer_idx)
            attended = self._side_by_side(graph, ops.matmul(graph, weights, value))
            output = self.proj_output_dense_layer(graph, attended)
            results: list[ir.Value | KeyValue] = [output]
            if cache_present_kv:
                results.append((self.heads.divided(key), self.heads.divided(value)))
            if need_weights:
                combine = self.heads.mean if average_attn_weights else self.heads.gathered
                results.append(combine(graph, weights))
            return output if len(results) == 1 else tuple(results)

    def _biases(
        self,
        graph: Graph,
        attn_mask: ir.Value | None,
        key_padding_mask: ir.Value | None,
        position_bias: ir.Value | None,
        past_key: ir.Value | None,
        key: ir.Value,
    ) -> list[ir.Value]:
        """What is added to the scores, of the replica's heads."""
        masks = [(attn_mask, (0, 1)), (key_padding_mask, (1, 2))]
        biases = [additive_mask(graph, mask, new_dims) for mask, new_dims in masks if mask is not None]
        if past_key is not None:
            biases = [for_past(graph, bias, past_key, key) for bias in biases]
        if position_bias is not None:
            biases.append(position_bias)
        return [self.heads.own(graph, bias) for bias in biases]

    def _heads(
        self,
        graph: Graph,
        x: ir.Value,
        rotary: RotaryPositionEmbeddingHelper | None = None,
        past_key: ir.Value | None = None,
    ) -> ir.Value:
        """`[B, L, N*H]` to `[B, N, L, H]`, rotated where there is something to rotate by."""
        if rotary is not None:
            x = rotary.rotate_tensor(graph, x, self.num_heads, past_key)
        return split_heads(graph, x, self.num_heads, self.head_dim)

    def _weights(
        self, graph: Graph, query: ir.Value, key: ir.Value, bias: ir.Value | None, layer_idx: int | None
    ) -> ir.Value:
        """Attention weights `[B, N, L, S]`."""
        scale = self._scale(layer_idx)
        if self.attention_type == "scaled_cosine":
            query, key = self._scaled_units(graph, query), _unit(graph, key)
        if scale != 1.0:
            query = ops.mul(graph, query, scale)
        scores = ops.matmul(graph, query, ops.transpose(graph, key, [0, 1, 3, 2]))
        return ops.softmax(graph, scores if bias is None else ops.add(graph, scores, bias))

    def _scale(self, layer_idx: int | None) -> float:
        """Factor on the scores."""
        if not self.scale_qk_dot_by_layer_idx:
            return self.scale
        if layer_idx is None:
            raise ConfigError("scale_qk_dot_by_layer_idx needs layer_idx in the call.")
        return self.scale / (layer_idx + 1)

    def _scaled_units(self, graph: Graph, query: ir.Value) -> ir.Value:
        """Queries `[B, N, L, H]` of the lengths that cosine attention has learned."""
        factor = ops.exp(graph, ops.minimum(graph, self.logits_scale_id, MAX_COSINE_SCALE))
        return ops.mul(graph, _unit(graph, query), factor)

    def _in_step(
        self,
        graph: Graph,
        x: ir.Value,
        step: Step,
        rotary: RotaryPositionEmbeddingHelper | None,
        layer_idx: int | None,
        bias: StepBias | None,
    ) -> ir.Value:
        """Causal attention `[B, L, D]` over the cache of the engine."""
        if layer_idx is None:
            raise ConfigError("step needs layer_idx in the call: the number of the layer's cache.")
        query, key, value = (
            layer(graph, x) for layer in (self.proj_q_dense_layer, self.proj_k_dense_layer, self.proj_v_dense_layer)
        )
        if rotary is not None:
            query, key = (rotary.rotate_tensor(graph, part, self.num_heads, step=step) for part in (query, key))
        if self.attention_type == "scaled_cosine":
            query = self._side_by_side(graph, self._scaled_units(graph, self._heads(graph, query)))
            key = self._side_by_side(graph, _unit(graph, self._heads(graph, key)))
        attended = attend_in_step(
            *(graph, step, layer_idx, query, key, value),
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            scale=self._scale(layer_idx),
            bias=bias,
        )
        return self.proj_output_dense_layer(graph, attended)

    def _side_by_side(self, graph: Graph, x: ir.Value) -> ir.Value:
        """`[B, N, L, H]` to `[B, L, N*H]`."""
        return joined_heads(graph, x, self.num_heads, self.head_dim)


def _unit(graph: Graph, x: ir.Value) -> ir.Value:
    """Vectors of length 1 (torch.nn.functional.normalize)."""
    return ops.div(graph, x, ops.maximum(graph, ops.reduce_l2(graph, x, [-1]), 1e-12))
