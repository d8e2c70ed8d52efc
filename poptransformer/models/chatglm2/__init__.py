# SPDX-License-Identifier: Apache-2.0
"""ChatGLM2-6B, ChatGLM3-6B, and transformers' GLM (GLM-4-9B, GLM-Edge), which is the same model under other names."""

from collections.abc import Mapping
from typing import Any

MODEL_CLASS = "ChatGLM2DecModel"
MODEL_TYPES = ("chatglm", "glm")

# Keys of configuration_chatglm.py since version 2; ChatGLM-6B, of the same `model_type`, has none of them.
_KEYS = ("multi_query_attention", "ffn_hidden_size", "kv_channels", "padded_vocab_size")


def accepts(config: Mapping[str, Any]) -> bool:
    """Whether a config of these types is built here, and not that of the first ChatGLM."""
    return config.get("model_type") != "chatglm" or any(key in config for key in _KEYS)
