# SPDX-License-Identifier: Apache-2.0
"""A GGUF file seen as a Hugging Face checkpoint: config, renamed and lazily dequantized tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from poptransformer.checkpoint.errors import CorruptCheckpointError, UnsupportedCheckpointError
from poptransformer.checkpoint.gguf_file import GGUFFile, GGUFTensor
from poptransformer.checkpoint.gguf_names import ARCHITECTURES, Architecture, block_tensor
from poptransformer.checkpoint.gguf_quants import dequantize
from poptransformer.checkpoint.gguf_rope import plain_number, rope_scaling
from poptransformer.checkpoint.lazy_array import LazyArray, PackedBlocks
from poptransformer.checkpoint.state_dict import LazyTensor
from poptransformer.checkpoint.tokenizer import stop_ids

# Blocks of 32 that our kernels multiply by as they are.
PACKED_TYPES = ("Q4_0", "Q4_1", "Q8_0")
_TOKEN_KEYS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def architecture_of(gguf: GGUFFile) -> Architecture:
    """Return the naming table of a file's architecture.

    Args:
        gguf: The opened file.

    Raises:
        UnsupportedCheckpointError: If there is none, or the file needs something the table cannot say.
    """
    name = str(gguf.metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise UnsupportedCheckpointError(
            f"{gguf.file.path} has the GGUF architecture {name!r}; "
            f"supported: {', '.join(sorted(ARCHITECTURES))}. Use the model's safetensors instead"
        )
    if gguf.metadata.get(f"{name}.expert_count"):
        raise UnsupportedCheckpointError(f"{gguf.file.path} is a mixture of experts, which is not supported")
    return ARCHITECTURES[name]


def gguf_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return what the model's `config.json` would hold.

    Args:
        gguf: The opened file.

    Raises:
        UnsupportedCheckpointError: If the architecture or its rotary scaling is not supported.
        CorruptCheckpointError: If the metadata lacks a value, or contradicts itself.
    """
    architecture = architecture_of(gguf)
    prefix = gguf.metadata["general.architecture"]
    given = {key: gguf.metadata.get(f"{prefix}.{name}") for name, key in architecture.config_keys.items()}
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
    }
    config |= architecture.constants
    config |= {key: plain_number(value) for key, value in given.items() if value is not None}
    if "token_embd.weight" in gguf.tensors:
        config["vocab_size"] = gguf.tensors["token_embd.weight"].shape[0]
    optional = {"num_key_value_heads", "head_dim", "rope_theta", "n_inner"}
    for name, key in architecture.config_keys.items():
        if key not in config and key not in optional:
            raise CorruptCheckpointError(f"{gguf.file.path} lacks the metadata {prefix}.{name}; convert it again")
        value = config.get(key, 1)
        if isinstance(value, (list, np.ndarray)):
            raise UnsupportedCheckpointError(f"{gguf.file.path} has one {prefix}.{name} per layer; expected one value")
        if isinstance(value, (str, bool)) or not value > 0:
            raise CorruptCheckpointError(f"{gguf.file.path} has {prefix}.{name} = {value!r}; expected a number above 0")
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    config |= _special_ids(gguf)
    if architecture.model_type == "llama":
        _complete_llama(config, gguf)
    return config


def _complete_llama(config: dict[str, Any], gguf: GGUFFile) -> None:
    """Fill in what Llama's metadata says indirectly: biases, head size, rotary scaling."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if not heads or "head_dim" not in config and hidden % heads:
        raise CorruptCheckpointError(f"{gguf.file.path} has {heads} heads for {hidden} hidden units; convert it again")
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", hidden // heads)
    rotated = gguf.metadata.get("llama.rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"]:
        raise UnsupportedCheckpointError(
            f"{gguf.file.path} rotates {rotated} of {config['head_dim']} dimensions per head; expected all"
        )
    config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in gguf.tensors
    config.setdefault("rope_theta", 10000.0)
    config["rope_scaling"] = rope_scaling(config, gguf)


def gguf_generation_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return what the model's `generation_config.json` would hold: the special token ids.

    Args:
        gguf: The opened file.
    """
    config: dict[str, Any] = dict(_special_ids(gguf))
    stops = stop_ids(*(gguf.metadata.get(f"tokenizer.ggml.{name}") for name in _STOP_KEYS))
    if len(stops) > 1:
        config["eos_token_id"] = list(stops)
    return config


def _special_ids(gguf: GGUFFile) -> dict[str, int]:
    """Return the ids of special tokens by their config keys."""
    found = {key: gguf.metadata.get(f"tokenizer.ggml.{name}") for name, key in _TOKEN_KEYS.items()}
    return {key: value for key, value in found.items() if isinstance(value, int)}


def gguf_tensors(gguf: GGUFFile, config: dict[str, Any]) -> dict[str, LazyTensor]:
    """Return the tensors under their Hugging Face names.

    Plain float tensors stay views of the file; quantized ones become float32 when they are read.

    Args:
        gguf: The opened file.
        config: The result of `gguf_config`.

    Raises:
        UnsupportedCheckpointError: If a tensor has no counterpart.
    """
    architecture = architecture_of(gguf)
    tensors: dict[str, LazyTensor] = {}
    for tensor in gguf.tensors.values():
        if tensor.name in architecture.ignored:
            continue
        name = architecture.rename(tensor.name)
        if name is None:
            raise UnsupportedCheckpointError(
                f"{gguf.file.path} holds the tensor {tensor.name!r}, which a {architecture.model_type} "
                "does not have; use the model's safetensors instead"
            )
        tensors[name] = _lazy(gguf, tensor, architecture, config)
    return tensors


def _lazy(gguf: GGUFFile, tensor: GGUFTensor, architecture: Architecture, config: dict[str, Any]) -> LazyTensor:
    """Describe one tensor: its final shape and type, and how to make it."""
    inner = block_tensor(tensor.name) or ""
    raw = gguf.raw(tensor)
    is_plain = raw.shape == tensor.shape and raw.dtype != np.uint8
    transposed = inner in architecture.transposed and len(tensor.shape) == 2
    heads = 0
    if inner in architecture.permuted:
        heads = config["num_attention_heads" if inner == "attn_q" else "num_key_value_heads"]
        if not heads or tensor.shape[0] % (2 * heads):
            raise CorruptCheckpointError(
                f"tensor {tensor.name!r} {list(tensor.shape)} of {gguf.file.path} "
                f"does not split into {heads} heads of even size"
            )

    def stored() -> np.ndarray:
        return _deinterleave(raw, heads) if heads else raw

    def load() -> np.ndarray:
        array = stored() if is_plain else _unread(stored, tensor, gguf, raw)
        return array.T if transposed else array

    shape = tensor.shape[::-1] if transposed else tensor.shape
    return LazyTensor(load, shape, raw.dtype if is_plain else np.dtype(np.float32))


def _unread(stored: Callable[[], np.ndarray], tensor: GGUFTensor, gguf: GGUFFile, raw: np.ndarray) -> np.ndarray:
    """A quantized tensor, dequantized when its values are read; a matrix can be had as packed blocks."""
    packed = None
    if tensor.type_name in PACKED_TYPES and len(tensor.shape) == 2:
        name = f"{tensor.name!r} of {gguf.file.path}"
        packed = PackedBlocks(name, tensor.type_name, *tensor.shape, {"blocks": stored})
    path = gguf.file.path

    def values() -> np.ndarray:
        return dequantize(stored(), tensor.type_name, tensor.shape, path)

    return cast(np.ndarray, LazyArray(values, tensor.shape, packed, stored=raw))


def _deinterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows within each head: pairs (2i, 2i+1) become (i, i + H/2).

    A block never crosses rows, so this works on quantized rows just as well, at a quarter of the traffic.

    Args:
        rows: `[heads * H, ...]`.
        heads: Number of heads.
    """
    split = rows.reshape(heads, rows.shape[0] // (2 * heads), 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
