# SPDX-License-Identifier: Apache-2.0
"""ChatGLM-6B, the first version."""

from collections.abc import Mapping
from typing import Any

MODEL_CLASS = "ChatGLMDecModel"
MODEL_TYPES = ("chatglm",)

_LATER_KEYS = ("multi_query_attention", "padded_vocab_size", "ffn_hidden_size")


def accepts(config: Mapping[str, Any]) -> bool:
    """Whether the config is of the first version: later ones have the same `model_type` and other keys."""
    return not any(key in config for key in _LATER_KEYS)
