# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poptransformer.attention_rules import MAX_COSINE_SCALE, check_attention, score_scale
from poptransformer.build import check_choice
from poptransformer.errors import ConfigError
from poptransformer.nn.initializers import InitializerSpec, create_initializer
from poptransformer.nn.positions import RotaryPositionEmbeddingHelper

KeyValue = tuple[Tensor, Tensor]
KERNELS = ("default", "fast_attention")


class MultiheadAttention(nn.Module):
    """Attention of queries `[B, L, D]` to keys and values `[B, S, ...]` (https://arxiv.org/abs/1706.03762).

    Args:
        embed_dim: D, columns of queries and of the output.
        num_heads: N.
        inner_dim: columns of all heads together; None is D.
        dropout: probability that a weight of attention is dropped in training.
        batch_first: must be true.
        add_bias_kv: must be false.
        add_zero_attn: must be false.
        kdim: columns of keys; None is D.
        vdim: columns of values; None is D.
        use_projection_bias: biases of the projections of queries, keys and values.
        use_ffn_bias: bias of the output projection.
        attention_initializer: of the projections; see `create_initializer`.
        attention_q_initializer: of the queries' projection, if another one.
        output_layer_initializer: of the output projection, if another one.
        bias_initializer: of the biases.
        attention_type: `scaled_dot_product`, `dot_product` (not scaled) or `scaled_cosine` (a learned scale).
        scale_qk_dot_by_d: divide scores by H in place of its root; only for `scaled_dot_product`.
        softmax_dtype_fp32: softmax in fp32 where the layer computes in 16 bits.
        attention_kernel: `fast_attention` is torch's fused kernel; None or `default` the plain formula.
        scale_qk_dot_by_layer_idx: divide scores by `layer_idx + 1`.
        device: where parameters lie.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
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
        attention_initializer: InitializerSpec = "xavier_uniform",
        attention_q_initializer: InitializerSpec | None = None,
        output_layer_initializer: InitializerSpec | None = None,
        bias_initializer: InitializerSpec = "zeros",
        attention_type: str = "scaled_dot_product",
        scale_qk_dot_by_d: bool = False,
        softmax_dtype_fp32: bool = True,
        attention_kernel: str | None = None,
        scale_qk_dot_by_layer_idx: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_attention(embed_dim, num_heads, inner_dim, batch_first, add_bias_kv, add_zero_attn, attention_type)
        check_choice("attention_kernel", attention_kernel or "default", KERNELS)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.inner_dim = inner_dim or embed_dim
        self.attention_type = attention_type
        self.scale = score_scale(self.inner_dim // num_heads, attention_type, scale_qk_dot_by_d)
        self.scale_qk_dot_by_layer_idx = scale_qk_dot_by_layer_idx
        self.softmax_dtype_fp32 = softmax_dtype_fp32
        self.is_fast = attention_kernel == "fast_attention"
        bias = bool(use_projection_bias)
        self.proj_q_dense_layer = nn.Linear(embed_dim, self.inner_dim, bias, device)
        self.proj_k_dense_layer = nn.Linear(kdim or embed_dim, self.inner_dim, bias, device)
        self.proj_v_dense_layer = nn.Linear(vdim or embed_dim, self.inner_dim, bias, device)
        self.proj_output_dense_layer = nn.Linear(self.inner_dim, embed_dim, use_ffn_bias, device)
        if attention_type == "scaled_cosine":
            self.logits_scale = nn.Parameter(torch.full((num_heads, 1, 1), 10.0, device=device).log())
        self.dropout_layer = nn.Dropout(dropout)
        self.initializers = {
            "proj_q_dense_layer": attention_q_initializer or attention_initializer,
            "proj_k_dense_layer": attention_initializer,
            "proj_v_dense_layer": attention_initializer,
            "proj_output_dense_layer": output_layer_initializer or attention_initializer,
        }
        self.bias_initializer = bias_initializer
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections anew."""
        for name, initializer in self.initializers.items():
            layer = getattr(self, name)
            create_initializer(initializer)(layer.weight.data)
            if layer.bias is not None:
                create_initializer(self.bias_initializer)(layer.bias.data)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        average_attn_weights: bool = True,
        past_kv: KeyValue | None = None,
        cache_present_kv: bool = False,
        past_kv_self_attn: bool = True,
        position_bias: Tensor | None = None,
        rotary_position_embedding_helper: RotaryPositionEmbeddingHelper | None = None,
        layer_idx: int | None = None,
    ) -> Tensor | tuple[Tensor | KeyValue, ...]:
        """Returns the output `[B, L, D]`; where asked for, a tuple of it, the present keys and values, the weights.

        Masks are True or 1 for what must not be attended to, or floats that are added to the scores. A mask of the S
        new keys alone leaves all that came before visible. A query that may see nothing sees everything alike.

        Args:
            q: `[B, L, D]`.
            k: `[B, S, kdim]`.
            v: `[B, S, vdim]`.
            attn_mask: `[L, S]`, `[B, L, S]` or `[B, N, L, S]`.
            key_padding_mask: `[B, S]`, `[B, L, S]` or `[B, N, L, S]`.
            need_weights: return the weights `[B, L, S]`.
            average_attn_weights: their mean over the heads; otherwise `[B, N, L, S]`.
            past_kv: keys and values of earlier calls, `[B, N, P, H]` each; keys as they were rotated.
            cache_present_kv: return keys and values, the past ones included.
            past_kv_self_attn: `k` and `v` continue the past; otherwise the past stands in their place, as in attention
                to an encoder whose keys are known.
            position_bias: `[N, L, S]` or `[B, N, L, S]`, added to the scores.
            rotary_position_embedding_helper: rotates queries and keys by their position.
            layer_idx: number of the layer, for `scale_qk_dot_by_layer_idx`.

        Raises:
            ConfigError: rotation and bias both, or no `layer_idx` where it counts.
        """
        if rotary_position_embedding_helper is not None and position_bias is not None:
            raise ConfigError(
                "rotary_position_embedding_helper and position_bias exclude each other; give one of them."
            )
        rotary = rotary_position_embedding_helper
        appends = past_kv is not None and past_kv_self_attn
        offset = past_kv[0].shape[-2] if appends and past_kv is not None else 0
        query = self._heads(self.proj_q_dense_layer(q), rotary, offset)
        if past_kv is not None and not past_kv_self_attn:
            key, value = past_kv
        else:
            key = self._heads(self.proj_k_dense_layer(k), rotary, offset)
            value = self._heads(self.proj_v_dense_layer(v))
            if past_kv is not None:
                key, value = torch.cat((past_kv[0], key), -2), torch.cat((past_kv[1], value), -2)
        bias = self._bias(attn_mask, key_padding_mask, position_bias, query, key, offset)
        attended, weights = self._attend(query, key, value, bias, layer_idx, need_weights)
        output = self.proj_output_dense_layer(attended.transpose(1, 2).flatten(-2))
        results: list[Tensor | KeyValue] = [output]
        if cache_present_kv:
            results.append((key, value))
        if need_weights and weights is not None:
            results.append(weights.mean(1) if average_attn_weights else weights)
        return output if len(results) == 1 else tuple(results)

    def _heads(self, x: Tensor, rotary: RotaryPositionEmbeddingHelper | None = None, offset: int = 0) -> Tensor:
        """`[B, L, N*H]` to `[B, N, L, H]`, rotated where there is something to rotate by."""
        heads = x.unflatten(-1, (self.num_heads, -1))
        if rotary is not None:
            heads = rotary.rotate_tensor(heads, offset=offset)
        return heads.transpose(1, 2)

    def _bias(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        position_bias: Tensor | None,
        q: Tensor,
        k: Tensor,
        past: int,
    ) -> Tensor | None:
        """Masks and position bias in one, to be added to the scores; in the type that softmax has."""
        dtype = torch.float32 if self.softmax_dtype_fp32 else q.dtype
        masks = [
            _additive(mask, dtype, dims, past if mask.shape[-1] == k.shape[-2] - past else 0)
            for mask, dims in ((attn_mask, (0, 1)), (key_padding_mask, (1, 2)))
            if mask is not None
        ]
        lowest = torch.finfo(dtype).min
        bias = None
        if masks:
            # Two masks, or infinities, must not add up to a row of minus infinity, whose softmax is not a number.
            bias = sum(masks[1:], masks[0]).clamp(min=lowest)
        if position_bias is None:
            return bias
        position = position_bias.to(dtype)
        return position if bias is None else (bias + position).clamp(min=lowest)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, layer_idx: int | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attended values `[B, N, L, H]` and the weights; the fast kernel has no weights to show."""
        scale = self.scale
        if self.scale_qk_dot_by_layer_idx:
            if layer_idx is None:
                raise ConfigError("scale_qk_dot_by_layer_idx needs layer_idx in the call.")
            scale /= layer_idx + 1
        if self.attention_type == "scaled_cosine":
            q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
            q = q * self.logits_scale.clamp(max=MAX_COSINE_SCALE).exp()
        if self.is_fast and not need_weights:
            mask = None if bias is None else bias.to(q.dtype)
            dropout = self.dropout_layer.p if self.training else 0.0
            return nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale), None
        scores = (q * scale) @ k.transpose(-1, -2)
        if self.softmax_dtype_fp32:
            scores = scores.float()
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(-1).to(v.dtype)
        return self.dropout_layer(weights) @ v, weights


def _additive(mask: Tensor, dtype: torch.dtype, new_dims: tuple[int, int], past: int) -> Tensor:
    """A mask as numbers to add to scores of four dimensions.

    Args:
        mask: `[L, S]` or `[B, S]`, `[B, L, S]`, `[B, N, L, S]`.
        dtype: of the result.
        new_dims: where a mask of two dimensions gets two more.
        past: columns to put before those of the mask.
    """
    if mask.ndim not in (2, 3, 4):
        raise ConfigError(f"A mask has 2, 3 or 4 dimensions, found shape {list(mask.shape)}.")
    if not mask.is_floating_point():
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask.bool(), torch.finfo(dtype).min)
    mask = mask.to(dtype)
    if mask.ndim == 2:
        mask = mask.unsqueeze(new_dims[0]).unsqueeze(new_dims[1])
    elif mask.ndim == 3:
        mask = mask.unsqueeze(1)
    return nn.functional.pad(mask, (past, 0)) if past else mask
