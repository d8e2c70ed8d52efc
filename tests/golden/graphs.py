# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs as text: what the golden files hold."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from poptransformer.build import Build, use_build
from poptransformer.checkpoint import random_checkpoint
from poptransformer.models import model_class_for
from poptransformer.runtime import compile_model

FOLDER = Path(__file__).parent

CONFIGS = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 61,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 60,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": 60,
    },
    "rwkv": {
        "model_type": "rwkv",
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "context_length": 64,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 6,
        "eos_token_id": 60,
    },
    "chatglm": {
        "model_type": "chatglm",
        "vocab_size": 61,
        "hidden_size": 32,
        "inner_hidden_size": 48,
        "num_layers": 2,
        "num_attention_heads": 2,
        "max_sequence_length": 64,
        "layernorm_epsilon": 1e-5,
        "position_encoding_2d": True,
        "mask_token_id": 56,
        "gmask_token_id": 57,
        "bos_token_id": 58,
        "eos_token_id": 60,
    },
}


def describe(family: str) -> str:
    """Inputs, weights, nodes and outputs of the compiled step graph, one a line, in the graph's order."""
    checkpoint = random_checkpoint(CONFIGS[family])
    with use_build(Build(precision="fp16")):
        model = model_class_for(checkpoint.config).from_checkpoint(checkpoint, max_length=64)
    model.build_graph()
    graph = compile_model(model).model.graph
    lines = [f"input   {_typed(value)}" for value in graph.inputs]
    lines += sorted(f"weight  {_typed(value)}" for value in graph.initializers.values())
    lines += [f"node    {node.op_type:<20} {node.name:<52} {_types(node)}" for node in graph]
    lines += [f"output  {_typed(value)}" for value in graph.outputs]
    return "\n".join(lines) + "\n"


def _typed(value: ir.Value) -> str:
    return f"{value.name} {_type(value)}"


def _types(node: ir.Node) -> str:
    return ", ".join(_type(value) for value in node.outputs)


def _type(value: ir.Value) -> str:
    dims = ["?" if dim is None else str(dim) for dim in value.shape or ()]
    return f"{value.dtype.name if value.dtype is not None else '?'}[{','.join(dims)}]"


def path(family: str) -> Path:
    """The golden file of a family."""
    return FOLDER / f"{family}.txt"
