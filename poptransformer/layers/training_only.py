# SPDX-License-Identifier: Apache-2.0
"""Arguments that only layers which train know: graph layers take them too, so that one mapping builds both."""

from __future__ import annotations

from collections.abc import Mapping

from poptransformer.errors import ConfigError, did_you_mean

INITIALIZERS = (
    "attention_initializer",
    "attention_q_initializer",
    "attention_output_layer_initializer",
    "bias_initializer",
    "embeddings_initializer",
    "ffn_initializer",
    "ffn_output_layer_initializer",
    "initializer",
    "output_layer_initializer",
    "position_embeddings_initializer",
    "projection_initializer",
    "segment_embeddings_initializer",
)
TRAINING_ONLY = (
    *INITIALIZERS,
    "alibi_trainable_slopes",
    "attention_dropout_rate",
    "attention_kernel",
    "attention_softmax_fp32",
    "device",
    "ffn_dropout_rate",
    "pad_rope",
    "softmax_dtype_fp32",
    "use_ff_layer1_dropout",
    "use_ff_layer2_dropout",
)


def check_training_only(layer: str, arguments: Mapping[str, object]) -> None:
    """Raises `X takes no <argument>` for what is no argument of training: initializers, dropout, devices, kernels."""
    for name in arguments:
        if name not in TRAINING_ONLY:
            raise ConfigError(f"{layer} takes no {name}. {did_you_mean(name, TRAINING_ONLY)}")
