# SPDX-License-Identifier: Apache-2.0
"""ChatGLM-6B in PyTorch, written from its published description; it shares nothing with our graph code.

Sources: "GLM: General Language Model Pretraining with Autoregressive Blank Infilling"
(https://arxiv.org/abs/2103.10360), "GLM-130B" (https://arxiv.org/abs/2210.02414), and the model card and config.json of
THUDM/chatglm-6b. Names of modules are the checkpoint's. Each forward takes whole rows and computes all of their tokens,
so no cache can be wrong.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ALPHA = math.sqrt(2 * 28)  # the number of layers of the 6B model, whatever the config says


class ChatGLMReferenceConfig(PretrainedConfig):
    """The keys of chatglm-6b's config.json that change what is computed."""

    model_type = "chatglm"
    attribute_map = {"num_hidden_layers": "num_layers"}

    def __init__(
        self,
        vocab_size: int = 67,
        hidden_size: int = 48,
        num_layers: int = 2,
        num_attention_heads: int = 3,
        inner_hidden_size: int = 80,
        layernorm_epsilon: float = 1e-5,
        max_sequence_length: int = 64,
        mask_token_id: int = 62,
        gmask_token_id: int = 63,
        position_encoding_2d: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.inner_hidden_size = inner_hidden_size
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.mask_token_id = mask_token_id
        self.gmask_token_id = gmask_token_id
        self.position_encoding_2d = position_encoding_2d
        special = {"bos_token_id": 64, "eos_token_id": 66, "use_cache": False}
        super().__init__(**{**special, **kwargs})


@dataclasses.dataclass
class Places:
    """Where tokens stand: positions and block positions int64 [B, L], and what each may see, bool [B, L, L]."""

    positions: torch.Tensor
    block_positions: torch.Tensor
    visible: torch.Tensor


def places_of(ids: torch.Tensor, config: ChatGLMReferenceConfig) -> Places:
    """Finds the context (what stands before BOS) and the mask token of each row."""
    rows, length = ids.shape
    positions = torch.arange(length).repeat(rows, 1)
    block_positions = torch.zeros_like(positions)
    visible = torch.ones(length, length, dtype=torch.bool).tril().repeat(rows, 1, 1)
    for row, tokens in enumerate(ids.tolist()):
        context = tokens.index(config.bos_token_id)
        mask = config.gmask_token_id if config.gmask_token_id in tokens else config.mask_token_id
        positions[row, context:] = tokens.index(mask)
        block_positions[row, context:] = torch.arange(1, length - context + 1)
        visible[row, :, :context] = True
    return Places(positions, block_positions, visible)


class RotaryEmbedding(nn.Module):
    """Rotates heads `[B, L, N, dim]` by positions `[B, L]`; half of each head is the other's partner."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
        self.register_buffer("inv_freq", frequencies.half())

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = positions[..., None].float() * self.inv_freq.half().float()
        cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SelfAttention(nn.Module):
    """Attention with a position for each half of a head."""

    def __init__(self, config: ChatGLMReferenceConfig, layer_index: int) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.layer_number = layer_index + 1
        self.rotary_emb = RotaryEmbedding(self.head_dim // 2)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        heads = self.query_key_value(x).unflatten(-1, (self.num_heads, 3 * self.head_dim))
        query, key, value = heads.chunk(3, dim=-1)
        query, key = self.rotate(query, places), self.rotate(key, places)
        query = query / (math.sqrt(self.head_dim) * self.layer_number)
        scores = torch.einsum("binh,bjnh->bnij", query, key)
        scores = scores.masked_fill(~places.visible[:, None], -10000.0) * self.layer_number
        attended = torch.einsum("bnij,bjnh->binh", scores.softmax(-1), value)
        return self.dense(attended.flatten(2))

    def rotate(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        rotated = self.rotary_emb(first, places.positions), self.rotary_emb(second, places.block_positions)
        return torch.cat(rotated, dim=-1)


class GLU(nn.Module):
    """The feed-forward block, which the checkpoint calls a GLU though it has no gate."""

    def __init__(self, config: ChatGLMReferenceConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(functional.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class GLMBlock(nn.Module):
    """A layer; what goes around a block is its normed input, times alpha."""

    def __init__(self, config: ChatGLMReferenceConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_index)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(self, x: torch.Tensor, places: Places) -> torch.Tensor:
        x = self.input_layernorm(x)
        x = x * ALPHA + self.attention(x, places)
        x = self.post_attention_layernorm(x)
        return x * ALPHA + self.mlp(x)


class ChatGLMModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ChatGLMReferenceConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(self, ids: torch.Tensor, places: Places) -> torch.Tensor:
        x = self.word_embeddings(ids)
        for layer in self.layers:
            x = layer(x, places)
        return self.final_layernorm(x)


@dataclasses.dataclass
class Tokens:
    """What stands in for a cache: the tokens so far, int64 [B, L]."""

    ids: torch.Tensor


class ChatGLMReference(PreTrainedModel, GenerationMixin):
    """The language model."""

    config_class = ChatGLMReferenceConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMReferenceConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves modules as torch makes them; rotary frequencies are no weights."""

    def generate(self, *args: Any, **settings: Any) -> Any:
        """transformers' `generate`, each step of which computes whole rows."""
        return super().generate(*args, use_cache=False, **settings)

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: Tokens | None = None,
        use_cache: bool | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of `input_ids`, which go on after `past_key_values`."""
        ids = input_ids if past_key_values is None else torch.cat([past_key_values.ids, input_ids], dim=1)
        hidden = self.transformer(ids, places_of(ids, self.config))[:, -input_ids.shape[1] :]
        cache = past_key_values or Tokens(ids)
        cache.ids = ids
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=cache if use_cache else None)
