# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp and Hugging Face call the same config keys and tensors, per architecture.

To support another architecture add one `Architecture` to `ARCHITECTURES`.
Source of the GGUF names: llama.cpp's `convert_hf_to_gguf.py` and the `gguf` package's constants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_TOP = re.compile(r"(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture maps to Hugging Face names.

    Attributes:
        model_type: The `model_type` of its config.
        class_name: Its causal-LM class in transformers.
        config_keys: Metadata key (below the architecture's prefix) to config key.
        constants: Config values that the metadata leaves unsaid.
        top: Names of tensors outside the blocks, without `.weight` / `.bias`.
        block_prefix: Prefix of a block, with `{}` for its index.
        block: Names of tensors inside a block, without `.weight` / `.bias`.
        permuted: GGUF block tensors whose rows llama.cpp interleaved for its rotary kernel.
        transposed: GGUF block weights stored `[out, in]` where Hugging Face has `[in, out]`.
        ignored: Tensors that say nothing a config does not say.
    """

    model_type: str
    class_name: str
    config_keys: Mapping[str, str]
    constants: Mapping[str, Any]
    top: Mapping[str, str]
    block_prefix: str
    block: Mapping[str, str]
    permuted: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    ignored: frozenset[str] = field(default_factory=frozenset)

    def rename(self, name: str) -> str | None:
        """Return the Hugging Face name of a GGUF tensor, or None if there is none.

        Args:
            name: For example `blk.3.attn_q.weight`.
        """
        if match := _BLOCK.fullmatch(name):
            index, inner, kind = match.groups()
            return f"{self.block_prefix.format(index)}.{self.block[inner]}.{kind}" if inner in self.block else None
        if (match := _TOP.fullmatch(name)) and match[1] in self.top:
            return f"{self.top[match[1]]}.{match[2]}"
        return None


def block_tensor(name: str) -> str | None:
    """Return a tensor's name within its block (`attn_q` of `blk.3.attn_q.weight`), None outside blocks."""
    match = _BLOCK.fullmatch(name)
    return match[2] if match else None


_LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    config_keys={
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
        "vocab_size": "vocab_size",
    },
    constants={"hidden_act": "silu"},
    top={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    block_prefix="model.layers.{}",
    block={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    permuted=frozenset({"attn_q", "attn_k"}),
    ignored=frozenset({"rope_freqs.weight"}),
)

_GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    config_keys={
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "vocab_size": "vocab_size",
    },
    constants={"activation_function": "gelu_new"},
    top={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    block_prefix="transformer.h.{}",
    block={
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
)

ARCHITECTURES: Mapping[str, Architecture] = {"llama": _LLAMA, "gpt2": _GPT2}
