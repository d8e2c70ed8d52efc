# SPDX-License-Identifier: Apache-2.0
"""Small models of the layers API, in torch and as graphs, for comparison."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from poptransformer import layers, nn
from poptransformer.graph import Graph
from poptransformer.program import Program
from poptransformer.program_graph import GraphFunction

TOLERANCE = 1e-5
B, L, S, N, D, V = 3, 6, 7, 4, 32, 29  # rows, tokens, tokens of the memory, heads, columns, vocabulary
POSITIONS = ("learned", "fixed", "rotary", "relative", "alibi", None)
MASKS = ("none", "causal", "added", "padding", "both")
BIASED = {"use_projection_bias_in_attention": True, "use_ffn_bias_in_attention": True, "use_ffn_bias": True}
TYPES = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.int64: "INT64", torch.bool: "BOOL"}

Tensors = dict[str, torch.Tensor]


def randomized(module: torch.nn.Module, seed: int = 0) -> Any:
    """The module with all parameters drawn anew, biases and norms too, so that a swapped one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            # What the layers drew differs from run to run: matrices begin anew, vectors (norms, biases) do not.
            if parameter.ndim > 1 and "logits_scale" not in name and "slopes" not in name:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return module.eval()


def embedding_arguments(positions: str | None) -> dict[str, Any]:
    return {
        "vocab_size": V,
        "embedding_size": D,
        "position_embedding_type": positions,
        "max_position_embeddings": 200,
        "num_heads": N,
        "rotary_dim": 6,
        "bidirectional": True,
        "num_segments": 2,
    }


def layer_arguments(norm_first: bool, **more: Any) -> dict[str, Any]:
    return {"d_model": D, "nhead": N, "dim_feedforward": 40, "dropout": 0.0, "norm_first": norm_first, **BIASED, **more}


def masks(kind: str, length: int = L, keys: int = L) -> Tensors:
    """`attn_mask` and `padding` of a kind; row 1 has two tokens of padding, row 2 three."""
    future = torch.ones(length, keys).triu(keys - length + 1)
    padding = torch.arange(keys)[None, :] >= torch.tensor([keys, keys - 2, keys - 3])[:, None]
    found: Tensors = {}
    if kind in ("causal", "both"):
        found["attn_mask"] = future.bool()
    if kind == "added":
        found["attn_mask"] = (future * torch.finfo(torch.float16).min).half()
    if kind in ("padding", "both"):
        found["padding"] = padding
    return found


def run_graph(make: GraphFunction, module: torch.nn.Module, inputs: Tensors, **options: Any) -> dict[str, np.ndarray]:
    """What the graph that `make` adds gives for the weights of `module`."""
    program = Program.compile(make, nn.as_state_dict(module), **options)
    return program.run({name: tensor.detach().numpy() for name, tensor in inputs.items()})


def declare(graph: Graph, inputs: Tensors) -> dict[str, ir.Value]:
    """Graph inputs for tensors; every dimension but the last of floats may change."""
    values = {}
    for name, tensor in inputs.items():
        fixed = name in ("x", "memory")
        shape: list[Any] = [f"{name}_{axis}" for axis in range(tensor.ndim - fixed)]
        shape += [tensor.shape[-1]] if fixed else []
        values[name] = graph.input(name, ir.DataType[TYPES[tensor.dtype]], shape)
    return values


def assert_close(found: Mapping[str, np.ndarray], expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        reference = tensor.detach().numpy()
        assert reference.std() > 0.05, f"{name} says nothing"
        np.testing.assert_allclose(found[name], reference, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


class TorchModel(torch.nn.Module):
    """Embeddings and an encoder or a decoder."""

    def __init__(self, positions: str | None, stack: str, **arguments: Any) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingLayer(**embedding_arguments(positions))
        norm = torch.nn.LayerNorm(D)
        if stack == "encoder":
            self.stack: torch.nn.Module = nn.TransformerEncoder(nn.TransformerEncoderLayer(**arguments), 2, norm)
        else:
            self.stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(**arguments), 2, norm)


class GraphModel(layers.BaseLayer):
    """The same as a graph."""

    def __init__(self, positions: str | None, stack: str, **arguments: Any) -> None:
        super().__init__(None, None)
        self.embedding = layers.EmbeddingLayer(None, "embedding", **embedding_arguments(positions))
        norm = functools.partial(layers.LayerNorm, input_size=D)
        if stack == "encoder":
            layer = functools.partial(layers.TransformerEncoderLayer, **arguments)
            self.stack: Any = layers.TransformerEncoder(None, "stack", layer, 2, norm)
        else:
            layer = functools.partial(layers.TransformerDecoderLayer, **arguments)
            self.stack = layers.TransformerDecoder(None, "stack", layer, 2, norm)
