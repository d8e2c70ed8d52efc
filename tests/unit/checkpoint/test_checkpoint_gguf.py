# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoint_files import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LLAMA_METADATA,
    VOCAB,
    llama_weights,
    to_gguf,
    write_gguf,
)

from poptransformer.checkpoint import (
    UnsupportedCheckpointError,
    open_checkpoint,
)
from poptransformer.checkpoint.gguf_quants import dequantize
from poptransformer.checkpoint.gguf_rope import llama3_rope_factors
from poptransformer.checkpoint.gguf_types import COMMON_TYPES, block_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_llama_round_trip_is_exact_and_not_copied(tmp_path: Path, kind: str, biases: bool) -> None:
    weights = llama_weights(biases)
    path = write_gguf(tmp_path / "m.gguf", to_gguf(weights, kind), LLAMA_METADATA)
    state = open_checkpoint(path).state_dict
    assert state.keys() == weights.keys()
    for key, array in weights.items():
        expected = array.astype(np.float16) if kind == "F16" and array.ndim == 2 else array
        np.testing.assert_array_equal(state[key], expected, err_msg=key)
        assert state[key].dtype == state.dtype(key) == expected.dtype and state.shape(key) == expected.shape
    norm = state["model.norm.weight"]
    assert not norm.flags.owndata and not norm.flags.writeable


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16"])
def test_quantized_tensors_equal_the_gguf_package(tmp_path: Path, kind: str) -> None:
    weights = llama_weights()
    path = write_gguf(tmp_path / "m.gguf", to_gguf(weights, kind), LLAMA_METADATA)
    state = open_checkpoint(path).state_dict
    ggml = gguf.GGMLQuantizationType[kind]
    for key, array in weights.items():
        if array.ndim == 2:
            array = gguf.quants.dequantize(gguf.quants.quantize(array, ggml), ggml)
        np.testing.assert_array_equal(state[key].astype(np.float32), array, err_msg=key)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0"])
def test_dequantizing_in_steps_changes_nothing(kind: str) -> None:
    ggml = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[ggml]
    raw = np.random.default_rng(0).integers(0, 256, (300, 1024 // block * block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = dequantize(raw, kind, (300, 1024), Path("x"))
        np.testing.assert_array_equal(ours, gguf.quants.dequantize(raw, ggml))


def test_types_are_those_of_the_gguf_package() -> None:
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        assert block_of(int(kind)) == (kind.name, *sizes)
    assert {name for name, _, _ in COMMON_TYPES.values()} <= set(gguf.GGMLQuantizationType.__members__)
    with pytest.raises(KeyError):
        block_of(1000)


def test_config_and_special_tokens(tmp_path: Path) -> None:
    weights = llama_weights(biases=True)
    ids = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
    }
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", to_gguf(weights), {**LLAMA_METADATA, **ids}))
    expected = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "vocab_size": VOCAB,
        "attention_bias": True,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert checkpoint.config.raw == expected
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 5]}
    assert not checkpoint.has_tokenizer


def test_a_missing_output_matrix_means_tied_embeddings(tmp_path: Path) -> None:
    weights = llama_weights()
    del weights["lm_head.weight"]
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", to_gguf(weights), LLAMA_METADATA))
    assert checkpoint.config.tie_word_embeddings and "lm_head.weight" not in checkpoint.state_dict


LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
            {"rope_type": "linear", "factor": 2.5},
        ),
        ({"llama.rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_rope_scaling(tmp_path: Path, metadata: dict[str, Any], expected: dict[str, Any] | None) -> None:
    path = write_gguf(tmp_path / "m.gguf", to_gguf(llama_weights()), {**LLAMA_METADATA, **metadata})
    assert open_checkpoint(path).config.rope_scaling == expected


def test_llama3_factors_are_recognised(tmp_path: Path) -> None:
    stored = to_gguf(llama_weights())
    stored["rope_freqs.weight"] = (llama3_rope_factors(LLAMA3, 50000.0, HEAD_DIM), "F32")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", stored, LLAMA_METADATA))
    assert checkpoint.config.rope() == {"rope_type": "llama3", "rope_theta": 50000.0, **LLAMA3}
    assert "rope_freqs.weight" not in checkpoint.state_dict
    stored["rope_freqs.weight"] = (np.full(HEAD_DIM // 2, 3, np.float32), "F32")
    with pytest.raises(UnsupportedCheckpointError, match="none of Llama 3's"):
        open_checkpoint(write_gguf(tmp_path / "n.gguf", stored, LLAMA_METADATA))


def test_llama3_factors_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=2048,
        num_attention_heads=32,
        rope_theta=500000.0,
        rope_scaling={"rope_type": "llama3", **LLAMA3},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(llama3_rope_factors(LLAMA3, 500000.0, 64), plain / scaled.numpy(), rtol=1e-5)


def test_gpt2(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    metadata = {
        "gpt2.context_length": 16,
        "gpt2.embedding_length": 8,
        "gpt2.block_count": 1,
        "gpt2.feed_forward_length": 32,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }
    shapes = {"wte.weight": (20, 8), "wpe.weight": (16, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    for name, shape in {
        "attn.c_attn": (8, 24),
        "attn.c_proj": (8, 8),
        "mlp.c_fc": (8, 32),
        "mlp.c_proj": (32, 8),
    }.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": (shape[1],)}
    for name in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{name}.weight": (8,), f"h.0.{name}.bias": (8,)}
    weights = {f"transformer.{key}": rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 1)
    stored = {}
    for key, array in weights.items():
        base, suffix = key.rsplit(".", 1)
        is_linear = base.endswith(("c_attn", "c_proj", "c_fc")) and suffix == "weight"
        stored[f"{names.get_name(base)}.{suffix}"] = (
            np.ascontiguousarray(array.T) if is_linear else array,
            "F32",
        )
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", stored, metadata, "gpt2"))
    assert checkpoint.state_dict.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(checkpoint.state_dict.get_tensor(key, array.shape), array, err_msg=key)
    config = checkpoint.config
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions, config.n_inner) == (
        8,
        1,
        2,
        16,
        32,
    )
    assert config.activation_function == "gelu_new" and config.vocab_size == 20 and config.tie_word_embeddings
