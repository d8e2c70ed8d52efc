# SPDX-License-Identifier: Apache-2.0
"""GlmForCausalLM with what ChatGLM2's configuration allows beyond it, and no published checkpoint uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GlmForCausalLM
from transformers.models.glm.modeling_glm import GlmDecoderLayer

CONFIG = {"add_bias_linear": True, "rmsnorm": False, "apply_residual_connection_post_layernorm": True}


class NormedResidualLayer(GlmDecoderLayer):
    """Residuals are the norms' outputs; norms take the mean away; every matrix has a bias."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(self, name, nn.LayerNorm(config.hidden_size, config.rms_norm_eps))
        for module, name in ((self.self_attn, "o_proj"), (self.mlp, "gate_up_proj"), (self.mlp, "down_proj")):
            linear = getattr(module, name)
            setattr(module, name, nn.Linear(linear.in_features, linear.out_features))

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        hidden_states = normed + self.self_attn(hidden_states=normed, **kwargs)[0]
        normed = self.post_attention_layernorm(hidden_states)
        return normed + self.mlp(normed)


class UnusualGlm(GlmForCausalLM):
    """The whole model."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers = nn.ModuleList(NormedResidualLayer(config, i) for i in range(config.num_hidden_layers))
        self.model.norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()


class OpenEndedGlm(GlmForCausalLM):
    """GLM without its final norm: `post_layer_norm: false`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.norm = nn.Identity()
