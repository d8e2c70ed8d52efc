# SPDX-License-Identifier: Apache-2.0
"""What values of a `config.json` may be: those that models compute with are checked when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from poptransformer.checkpoint.errors import CorruptCheckpointError

_LARGEST_SIZE = 2**31 - 1
_LARGEST_HEAD = 2**16  # a table of its columns is made before any weight shows that it is wrong

_SIZES = {
    *("n_layer", "n_head", "n_embd", "n_positions", "n_inner", "vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "head_dim"),
    *("original_max_position_embeddings", "rotary_dim"),
}
_EPSILONS = {"layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"}
_FACTORS = {"rope_theta", "rotary_emb_base", "factor", "low_freq_factor", "high_freq_factor"}
_FRACTIONS = {"partial_rotary_factor", "rotary_pct"}
_FLAGS = {
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_parallel_residual"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "norm_first", "final_norm", "head_bias"),
    *("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"),
}
_WORDS = {"model_type", "hidden_act", "activation_function", "rope_type", "attention_type", "position_embedding_type"}
# What each type of rotary embedding needs beside `rope_theta`.
_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ids(value: Any) -> bool:
    return all(map(_is_integer, value)) if isinstance(value, (list, tuple)) else _is_integer(value)


_KINDS: list[tuple[set[str], str, Callable[[Any], bool]]] = [
    ({"head_dim"}, f"an integer from 1 to {_LARGEST_HEAD}", lambda x: _is_integer(x) and 1 <= x <= _LARGEST_HEAD),
    (_SIZES, f"an integer from 1 to {_LARGEST_SIZE}", lambda x: _is_integer(x) and 1 <= x <= _LARGEST_SIZE),
    (_EPSILONS, "a number of at least 0", lambda x: _is_number(x) and x >= 0),
    (_FACTORS, "a number above 0", lambda x: _is_number(x) and x > 0),
    (_FRACTIONS, "a number above 0 and at most 1", lambda x: _is_number(x) and 0 < x <= 1),
    (_FLAGS, "true or false", lambda x: isinstance(x, bool)),
    (_WORDS, "a name", lambda x: isinstance(x, str)),
    ({"eos_token_id"}, "a token id or a list of them", _is_ids),
]


def checked(key: str, value: Any, source: str) -> Any:
    """Return a value; numbers that are not counted come as floats, as JSON may write them without a point.

    Args:
        key: Its key.
        value: As it was read. None stands for a key that is left out.
        source: What messages call the file.

    Raises:
        CorruptCheckpointError: If a value of that key must be of another kind.
    """
    if value is None:
        return None
    for keys, expected, is_valid in _KINDS:
        if key in keys:
            if not is_valid(value):
                raise CorruptCheckpointError(f"{key} in {source} is {value!r}; expected {expected}")
            break
    return float(value) if key in _EPSILONS | _FACTORS | _FRACTIONS else value


def required(key: str, value: Any, source: str) -> Any:
    """Return a value that a model cannot do without.

    Raises:
        CorruptCheckpointError: If it is null, and must be of another kind.
    """
    for keys, expected, _ in _KINDS:
        if value is None and key in keys:
            raise CorruptCheckpointError(f"{key} in {source} is null; expected {expected}")
    return value


def checked_rope(rope: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the parameters of a rotary embedding.

    Args:
        rope: `rope_type`, `rope_theta` and what the type needs.
        source: What messages call the file.

    Raises:
        CorruptCheckpointError: If one is missing, or must be of another kind.
    """
    found = {key: checked(key, value, source) for key, value in rope.items()}
    for key in _ROPE_KEYS.get(found["rope_type"], ()):
        if found.get(key) is None:
            raise CorruptCheckpointError(f"{source} has no {key}; rope_type {found['rope_type']} needs it")
    return found
