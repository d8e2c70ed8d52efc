# SPDX-License-Identifier: Apache-2.0
"""Small random models that cover what their architectures can vary; one row here is a full set of parity tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.chatglm2 import hub_layout
from tests.parity import chatglm2_reference


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to compare with PyTorch.

    Attributes:
        name: test id.
        make: returns the transformers model, weights not yet set.
        save: keyword arguments of `save_pretrained`.
        dtype: torch dtype name that the checkpoint is saved in.
        cache: what transformers' model calls what it hands from step to step.
        beams: keyword arguments of `generate` under which transformers' beam search is right.
        ending: ids that end every prompt.
        fused: nodes of a layer that are `FusedLinear` after the pass.
        unfused: op types that `fuse` leaves in a layer, as several nodes read their output.
        write: writes the weights in a layout that transformers does not know; None is `save_pretrained`.
    """

    name: str
    make: Callable[[], Any]
    save: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    cache: str = "past_key_values"
    beams: dict[str, Any] = dataclasses.field(default_factory=dict)
    ending: tuple[int, ...] = ()
    fused: int = 4
    unfused: frozenset[str] = frozenset()
    write: Callable[[Any, Path], None] | None = None


def _gpt2(**overrides: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = {"vocab_size": 61, "n_embd": 40, "n_layer": 3, "n_head": 5, "n_positions": 64}
        ids = {"bos_token_id": 0, "eos_token_id": 60}
        return GPT2LMHeadModel(GPT2Config(**{**config, **ids, **overrides}))

    return make


def _llama(**overrides: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = {
            "vocab_size": 67,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 66,
        }
        return LlamaForCausalLM(LlamaConfig(**{**config, **overrides}))

    return make


def _rwkv(**overrides: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import RwkvConfig, RwkvForCausalLM

        config = {"vocab_size": 67, "hidden_size": 40, "num_hidden_layers": 3, "context_length": 64}
        ids = {"bos_token_id": 0, "eos_token_id": 66}
        return RwkvForCausalLM(RwkvConfig(**{**config, **ids, **overrides}))

    return make


def _glm(model_class: type | None = None, **overrides: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import GlmConfig, GlmForCausalLM

        config = {
            "vocab_size": 67,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 0,
            "eos_token_id": 66,
        }
        return (model_class or GlmForCausalLM)(GlmConfig(**{**config, **overrides}))

    return make


# transformers' RWKV neither reorders its state for beams, nor steps right with several rows.
_RWKV: dict[str, Any] = {
    "cache": "state",
    "beams": {"use_cache": False},
    "fused": 4,
    "unfused": frozenset({"Linear", "Add", "Mul", "LayerNormalization"}),
}


def _chatglm(name: str, ending: tuple[int, ...] = (63, 64), saved: tuple[Any, ...] = (), **overrides: Any) -> Variant:
    def make() -> Any:
        from tests.parity.chatglm_reference import ChatGLMReference, ChatGLMReferenceConfig

        return ChatGLMReference(ChatGLMReferenceConfig(**overrides))

    # A layer's residual is its normed input, times alpha.
    return Variant(name, make, *saved, ending=ending, unfused=frozenset({"LayerNormalization", "Mul"}))


def _hub(
    weights: str = "model.safetensors", shards: int = 1, by_head: bool = False, **config: Any
) -> Callable[[Any, Path], None]:
    """The layout of THUDM/chatglm2-6b; `config` are keys of its config.json."""

    def write(model: Any, folder: Path) -> None:
        eos = {"eos_token_id": model.config.eos_token_id}
        tensors = hub_layout.tensors_of(model)
        for name, tensor in tensors.items():
            if by_head and "query_key_value" in name:  # [3, N, H, ...] to [N, 3, H, ...]
                parts = tensor.unflatten(0, (3, model.config.num_attention_heads, -1))
                tensors[name] = parts.transpose(0, 1).flatten(0, 2)
        hub_layout.write_config(folder, {**hub_layout.config_of(model.config), **eos, **config})
        hub_layout.write_tensors(folder, tensors, weights, shards)

    return write


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

VARIANTS = [
    Variant("gpt2", _gpt2()),
    Variant("gpt2-odd-heads", _gpt2(n_embd=75, n_head=25, n_layer=2)),
    Variant("gpt2-untied", _gpt2(tie_word_embeddings=False)),
    Variant("gpt2-inverse-layer-scale", _gpt2(scale_attn_by_inverse_layer_idx=True)),
    Variant("gpt2-relu-wide-mlp", _gpt2(activation_function="relu", n_inner=50)),
    Variant("gpt2-sharded", _gpt2(), {"max_shard_size": "60KB"}),
    Variant("llama-gqa", _llama()),
    Variant("llama-mha", _llama(num_key_value_heads=6)),
    Variant("llama-mqa-odd-head-dim", _llama(num_key_value_heads=1, head_dim=14)),
    Variant("llama-biases-tied", _llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    Variant("llama-theta", _llama(**_rope("default", rope_theta=500000.0))),
    Variant("llama-rope-linear", _llama(**_rope("linear", factor=3.0))),
    Variant("llama-rope-dynamic", _llama(max_position_embeddings=16, **_rope("dynamic", factor=2.0))),
    Variant("llama-rope-llama3", _llama(**_LLAMA3)),
    Variant("llama-eps", _llama(rms_norm_eps=1e-2, hidden_act="gelu_pytorch_tanh")),
    Variant("llama-sharded-bf16", _llama(), {"max_shard_size": "40KB"}, "bfloat16"),
    Variant("llama-fp16", _llama(), {}, "float16"),
    Variant("rwkv", _rwkv(), **_RWKV),
    Variant("rwkv-rescaled", _rwkv(num_hidden_layers=5, rescale_every=2), **_RWKV),
    Variant("rwkv-odd-sizes", _rwkv(hidden_size=37, intermediate_size=50, rescale_every=0), **_RWKV),
    Variant("rwkv-eps", _rwkv(layer_norm_epsilon=1e-2, rescale_every=1), **_RWKV),
    Variant("rwkv-tied-sharded-fp16", _rwkv(tie_word_embeddings=True), {"max_shard_size": "40KB"}, "float16", **_RWKV),
    _chatglm("chatglm"),
    _chatglm("chatglm-mask-in-context", (62, 5, 64), gmask_token_id=67),  # no id that is generated
    _chatglm("chatglm-text-after-bos", (63, 64, 7, 64, 9), layernorm_epsilon=1e-2),
    _chatglm("chatglm-tied", tie_word_embeddings=True, num_layers=3),
    _chatglm("chatglm-sharded-fp16", saved=({"max_shard_size": "40KB"}, "float16")),
    Variant("glm", _glm()),
    Variant("glm-mqa-tied", _glm(num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-2)),
    Variant("glm-no-biases-wide-rotary", _glm(attention_bias=False, **_rope("default", partial_rotary_factor=1.0))),
    Variant("glm-theta-sharded-bf16", _glm(**_rope("default", rope_theta=5e6)), {"max_shard_size": "40KB"}, "bfloat16"),
    Variant("chatglm2", _glm(), write=_hub()),
    Variant("chatglm2-one-group", _glm(num_key_value_heads=1, head_dim=20), write=_hub()),
    Variant(
        "chatglm2-no-groups",
        _glm(num_key_value_heads=6),
        write=_hub(by_head=True, multi_query_attention=False),
        unfused=frozenset({"Split"}),
    ),
    Variant(
        "chatglm2-unusual",
        _glm(chatglm2_reference.UnusualGlm),
        write=_hub(**chatglm2_reference.CONFIG),
        unfused=frozenset({"LayerNormalization"}),
    ),
    Variant(
        "chatglm2-no-final-norm",
        _glm(chatglm2_reference.OpenEndedGlm, hidden_size=16, intermediate_size=8),
        write=_hub(post_layer_norm=False),
    ),
    Variant("chatglm2-rope-ratio", _glm(**_rope("default", rope_theta=50e4)), write=_hub(rope_ratio=50)),
    Variant(
        "chatglm2-32k",
        _glm(**_rope("linear", factor=4.0)),
        write=_hub(rope_ratio=4, _name_or_path="THUDM/chatglm2-6b-32k"),
    ),
    Variant("chatglm2-sharded-fp16", _glm(), {}, "float16", write=_hub(shards=3)),
    Variant("chatglm2-bin-shards", _glm(), write=_hub("pytorch_model.bin", shards=2)),
]
