# SPDX-License-Identifier: Apache-2.0
"""What the layers must know, whichever of the two config formats says it."""

from __future__ import annotations

import dataclasses
from typing import Any

from poptransformer.checkpoint import HFConfig
from poptransformer.errors import ConfigError

_THETA = 10000.0  # ChatGLM's modeling code has it as a constant


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers of a model.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        inner_size: columns of the gate, and of what it multiplies.
        num_layers: decoder blocks.
        num_heads: query heads N.
        num_groups: key and value heads K.
        head_dim: H.
        rotary_dim: columns of a head that are rotated.
        interleaved: whether the pairs that are rotated are neighbours, or halves.
        rope: parameters of the rotary embedding, see `HFConfig.rope`.
        max_positions: tokens of a row that the model was trained for.
        eps: added to the variance of norms.
        activation: of the gate.
        is_rms: whether norms leave the mean alone.
        by_head: whether the packed projection has queries, keys and values of a head together.
        qkv_bias: whether queries, keys and values have biases.
        dense_bias: whether the output of the attention has one.
        mlp_bias: whether the feed-forward block has them.
        residual_after_norm: whether residuals are taken after the norm.
        has_final_norm: whether a norm follows the last block.
        is_tied: whether the head shares the embedding's table.
    """

    vocab_size: int
    hidden_size: int
    inner_size: int
    num_layers: int
    num_heads: int
    num_groups: int
    head_dim: int
    rotary_dim: int
    interleaved: bool
    rope: dict[str, Any]
    max_positions: int
    eps: float
    activation: str
    is_rms: bool
    by_head: bool
    qkv_bias: bool
    dense_bias: bool
    mlp_bias: bool
    residual_after_norm: bool
    has_final_norm: bool
    is_tied: bool

    def __post_init__(self) -> None:
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ConfigError(
                f"{self.rotary_dim} of a head's {self.head_dim} columns would be rotated; expected an even number of "
                "them. Check kv_channels, or head_dim and partial_rotary_factor, in the checkpoint's config.json."
            )

    @classmethod
    def of(cls, config: HFConfig) -> Settings:
        """Reads a checkpoint's config."""
        return _of_glm(config) if config.get("model_type") == "glm" else _of_chatglm(config)


def _of_chatglm(config: HFConfig) -> Settings:
    """The format of THUDM/chatglm2-6b; defaults are those of its configuration_chatglm.py."""
    num_heads = config.num_attention_heads
    head_dim = config.get("kv_channels") or config.hidden_size // num_heads
    is_grouped, has_bias = config.get("multi_query_attention", False), config.get("add_bias_linear", False)
    return Settings(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        inner_size=config.ffn_hidden_size,
        num_layers=config.num_layers,
        num_heads=num_heads,
        num_groups=config.get("multi_query_group_num", 1) if is_grouped else num_heads,
        head_dim=head_dim,
        rotary_dim=head_dim // 2,
        interleaved=config.get("original_rope", True),
        rope=_chatglm_rope(config),
        max_positions=config.get("seq_length", 2048),
        eps=config.get("layernorm_epsilon", 1e-5),
        activation="silu",
        is_rms=config.get("rmsnorm", True),
        by_head=not is_grouped,
        qkv_bias=has_bias or config.get("add_qkv_bias", False),
        dense_bias=has_bias,
        mlp_bias=has_bias,
        residual_after_norm=config.get("apply_residual_connection_post_layernorm", False),
        has_final_norm=config.get("post_layer_norm", True),
        is_tied=config.get("tie_word_embeddings", False),
    )


def _chatglm_rope(config: HFConfig) -> dict[str, Any]:
    """Rotary parameters.

    `rope_ratio` multiplies theta in the code of ChatGLM3-6B-32K and GLM-4-9B. That of ChatGLM2-6B-32K divides positions
    by it; nothing but its name tells the two apart.
    """
    ratio = config.get("rope_ratio", 1)
    if "chatglm2" in str(config.get("_name_or_path", "")).lower():
        return {"rope_type": "linear", "rope_theta": _THETA, "factor": ratio}
    return {"rope_type": "default", "rope_theta": _THETA * ratio}


def _of_glm(config: HFConfig) -> Settings:
    """The format of transformers' GlmConfig, and its defaults."""
    num_heads = config.num_attention_heads
    head_dim = config.get("head_dim") or config.hidden_size // num_heads
    rope = config.rope()
    return Settings(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        inner_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        num_groups=config.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 0.5)),
        interleaved=True,
        rope=rope,
        max_positions=config.get("max_position_embeddings", 131072),
        eps=config.get("rms_norm_eps", 1.5625e-07),
        activation=config.get("hidden_act", "silu"),
        is_rms=True,
        by_head=False,
        qkv_bias=config.get("attention_bias", True),
        dense_bias=False,
        mlp_bias=False,
        residual_after_norm=False,
        has_final_norm=True,
        is_tied=config.get("tie_word_embeddings", False),
    )
