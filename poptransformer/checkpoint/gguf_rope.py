# SPDX-License-Identifier: Apache-2.0
"""Rotary scaling of a GGUF file, which stores it as metadata or, for Llama 3, as a tensor of factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from poptransformer.checkpoint.errors import UnsupportedCheckpointError
from poptransformer.checkpoint.gguf_file import GGUFFile

_ROPE_FACTORS = "rope_freqs.weight"
# The only settings published with Llama 3.1 to 3.3; a GGUF keeps just the resulting factors.
_LLAMA3_SETTINGS = tuple(
    {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)


def plain_number(value: Any) -> Any:
    """Return a metadata value without its float32 rounding: 9.99999974e-06 was written as 1e-5."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def rope_scaling(config: dict[str, Any], gguf: GGUFFile) -> dict[str, Any] | None:
    """Return a Llama file's rotary scaling, as transformers spells `rope_scaling`; None where there is none.

    Args:
        config: Its configuration so far, with `rope_theta` and `head_dim`.
        gguf: The opened file.

    Raises:
        UnsupportedCheckpointError: If the scaling is of a kind that is not supported.
    """
    if _ROPE_FACTORS in gguf.tensors:
        return _llama3_scaling(config, gguf)
    metadata = gguf.metadata
    kind = metadata.get("llama.rope.scaling.type", "linear" if "llama.rope.scale_linear" in metadata else "none")
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear", 1.0))
    if kind == "none" or kind == "linear" and factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": plain_number(factor)}
    raise UnsupportedCheckpointError(
        f"{gguf.file.path} scales its rotary embedding by {kind!r}; supported: linear, llama3. "
        "Use the model's safetensors instead"
    )


def llama3_rope_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Return what each rotary frequency is divided by under Llama 3's scaling, `float32 [head_dim / 2]`.

    Source: `_compute_llama3_parameters` of transformers describes the same curve as frequencies.

    Args:
        scaling: `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
        theta: Base of the frequencies.
        head_dim: Size of a head.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = (
        scaling["original_max_position_embeddings"]
        * theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        / (2 * math.pi)
    )
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / scaling["factor"] + blend)).astype(np.float32)


def _llama3_scaling(config: dict[str, Any], gguf: GGUFFile) -> dict[str, Any]:
    """Find the Llama 3 settings whose factors the file stores."""
    stored = gguf.raw(gguf.tensors[_ROPE_FACTORS])
    for scaling in _LLAMA3_SETTINGS:
        factors = llama3_rope_factors(scaling, config["rope_theta"], config["head_dim"])
        if stored.shape == factors.shape and np.allclose(stored, factors, rtol=1e-3):
            return {"rope_type": "llama3", **scaling}
    raise UnsupportedCheckpointError(
        f"{gguf.file.path} stores rotary factors ({_ROPE_FACTORS}) that are none of Llama 3's; "
        "use the model's safetensors instead"
    )
