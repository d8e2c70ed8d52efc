# SPDX-License-Identifier: Apache-2.0
"""Graph layers of the layers API on several replicas and stages, against the torch layers, to 1e-5."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from poptransformer import layers, nn, ops
from poptransformer.errors import ConfigError, GraphError
from poptransformer.graph import Graph
from poptransformer.program import Program
from tests.parity.layers_api import (
    POSITIONS,
    B,
    D,
    L,
    N,
    V,
    assert_close,
    declare,
    masks,
    randomized,
    run_graph,
)
from tests.parity.test_layers_api import (
    ATTENTIONS,
    check_attention,
    check_decoder,
    check_encoder,
    check_transformer,
    ids,
    tensor,
)

REPLICAS = (2, 4)
# Each kind on one of the two.
BY_POSITION = [(positions, REPLICAS[index % 2]) for index, positions in enumerate(POSITIONS)]
BY_KIND = [(kind, REPLICAS[index % 2]) for index, kind in enumerate(ATTENTIONS)]
TP = {"model_type": "tp", "threads": 1}


@pytest.mark.parametrize(("positions", "replicas"), BY_POSITION)
def test_encoder(positions: str | None, replicas: int) -> None:
    check_encoder(positions, "both", replicas == 2, **TP, num_replicas=replicas)


@pytest.mark.parametrize(("positions", "replicas"), BY_POSITION[1:5])
def test_decoder_with_an_encoder_and_a_past(positions: str | None, replicas: int) -> None:
    check_decoder(positions, "both", replicas == 4, **TP, num_replicas=replicas)


@pytest.mark.parametrize(("kind", "replicas"), BY_KIND)
def test_attention(kind: str, replicas: int) -> None:
    check_attention(kind, averaged=replicas == 2, **TP, num_replicas=replicas)


STAGES: list[dict[str, Any]] = [
    {"layer_per_ipu": [1, 3], "threads": 1},
    {"layer_per_ipu": [0, 2, 1, 1, 0], **TP, "num_replicas": 2},
]


@pytest.mark.parametrize("plan", [{**TP, "num_replicas": 4}, *STAGES], ids=str)
def test_transformer(plan: dict[str, Any]) -> None:
    check_transformer(norm_first=True, **plan)


@pytest.mark.parametrize(
    "plan", [{"layer_per_ipu": [1, 1]}, {"layer_per_ipu": [1, 1], **TP, "num_replicas": 2}], ids=str
)
def test_stages_with_a_past(plan: dict[str, Any]) -> None:
    check_decoder("relative", "causal", False, **plan)


@pytest.mark.parametrize("is_known", [True, False], ids=["heads known", "any number of heads"])
@pytest.mark.parametrize("heads", [1, N])
def test_masks_and_biases_with_an_axis_of_heads(heads: int, is_known: bool) -> None:
    """Each replica takes its own of all heads; what is one for all stays."""
    attention = randomized(nn.MultiheadAttention(D, N))
    inputs = {"x": tensor(B, L, D), "mask": tensor(B, heads, L, L, seed=5), "bias": 3 * tensor(heads, L, L, seed=6)}
    expected = attention(*[inputs["x"]] * 3, inputs["mask"], position_bias=inputs["bias"])

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x, mask, bias = declare(graph, inputs).values()
        if is_known:
            mask.shape, bias.shape = ir.Shape(["b", heads, "l", "s"]), ir.Shape([heads, "l", "s"])
        return {"y": layers.MultiheadAttention(None, "a", D, N)(graph, x, x, x, mask, position_bias=bias)}

    wrapped = torch.nn.ModuleDict({"a": attention})
    for replicas in REPLICAS:
        assert_close(run_graph(make, wrapped, inputs, **TP, num_replicas=replicas), {"y": expected})


def test_a_bias_of_another_number_of_heads() -> None:
    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x = graph.input("x", ir.DataType.FLOAT, ["b", "l", D])
        bias = graph.input("bias", ir.DataType.FLOAT, [3, "l", "l"])
        return {"y": layers.MultiheadAttention(None, None, D, N)(graph, x, x, x, position_bias=bias)}

    with pytest.raises(GraphError, match="bias has 3 heads; expected 1, 2 or 4"):
        Program.compile(make, nn.as_state_dict(nn.MultiheadAttention(D, N)), **TP, num_replicas=2)


@pytest.mark.parametrize("part", ["attention", "relative", "alibi"])
def test_replicas_that_cannot_share_the_heads(part: str) -> None:
    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x = graph.input("x", ir.DataType.FLOAT, ["b", "l", D])
        if part == "attention":
            return {"y": layers.MultiheadAttention(None, "part", D, N)(graph, x, x, x)}
        embedding = layers.EmbeddingLayer(
            None, "part", V, D, position_embedding_type=part, num_heads=N, max_position_embeddings=L
        )
        return {"y": embedding.compute_position_bias(graph, 4, 4)}

    modules = {
        "attention": nn.MultiheadAttention(D, N),
        "relative": nn.EmbeddingLayer(V, D, position_embedding_type="relative", num_heads=N, max_position_embeddings=L),
        "alibi": nn.EmbeddingLayer(V, D, position_embedding_type="alibi", num_heads=N, max_position_embeddings=L),
    }
    weights = nn.as_state_dict(torch.nn.ModuleDict({"part": modules[part]}))
    message = r"num_replicas=3 does not divide 4 heads; valid: 1, 2, 4; power of two: 1, 2, 4 \(part.*\)"
    with pytest.raises(ConfigError, match=message):
        Program.compile(make, weights, **TP, num_replicas=3)


class Logits(layers.BaseLayer):
    """A language model of an odd number of words, with a head of its own."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.embedding = layers.EmbeddingLayer(None, "embedding", V, D, max_position_embeddings=L)
        layer = functools.partial(layers.TransformerEncoderLayer, d_model=D, nhead=N, dim_feedforward=44)
        self.stack = layers.TransformerEncoder(None, "stack", layer, 2)
        self.head = layers.LMHead(None, "head", V, D, use_bias=True)


def logits_program(**options: Any) -> tuple[Program, torch.Tensor, np.ndarray]:
    """The model compiled, ids, and torch's logits."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, N, 44, 0.0)
    parts = {"embedding": nn.EmbeddingLayer(V, D, max_position_embeddings=L), "stack": nn.TransformerEncoder(layer, 2)}
    model = randomized(torch.nn.ModuleDict({**parts, "head": torch.nn.Linear(D, V)}))
    row = ids()["ids"]
    expected = model["head"](model["stack"](model["embedding"](row), masks("causal")["attn_mask"]))

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        words = graph.input("ids", ir.DataType.INT64, ["rows", "tokens"])
        built = Logits()
        x = built.stack(graph, built.embedding(graph, words), layers.causal_mask(graph, words))
        return {"logits": built.head(graph, x)}

    return Program.compile(make, nn.as_state_dict(model), threads=1, **options), row, expected.detach().numpy()


@pytest.mark.parametrize("plan", [{"model_type": "tp", "num_replicas": 4}, {"layer_per_ipu": [1, 1, 0]}], ids=str)
def test_a_language_model_is_saved_and_opened(plan: dict[str, Any], tmp_path: Path) -> None:
    program, row, expected = logits_program(**plan)
    inputs = {"ids": row.numpy()}
    np.testing.assert_allclose(program.run(inputs)["logits"], expected, atol=1e-5, rtol=1e-5)
    opened = Program.load(program.save(tmp_path / "model"), threads=1)
    assert (opened.num_replicas, opened.layer_per_ipu) == (program.num_replicas, program.layer_per_ipu)
    np.testing.assert_array_equal(opened.run(inputs)["logits"], program.run(inputs)["logits"])
    assert opened.report == program.report


def test_replicas_divide_the_weights() -> None:
    program, _, _ = logits_program(model_type="tp", num_replicas=4)
    expected = {
        "embedding.word_embeddings.weight": [8, D],  # of 29 words
        "stack.layers.0.self_attn.proj_q_dense_layer.weight": [D // 4, D],
        "stack.layers.0.self_attn.proj_output_dense_layer.weight": [D, D // 4],
        "stack.layers.1.ffn.ffn.0.linear_layer.weight": [11, D],
        "stack.layers.1.ffn.ffn.1.linear_layer.weight": [D, 11],
        "head.weight": [8, D],
    }
    for model in (program.model, *program.peers):
        shapes = {name: list(model.graph.initializers[name].shape) for name in expected}
        assert shapes == expected


def test_stages_that_do_not_add_up() -> None:
    with pytest.raises(ConfigError, match=r"layer_per_ipu sums to 3, model has 2 layers; try \[1,1\]"):
        logits_program(layer_per_ipu=[1, 2])


def test_an_output_that_replicas_disagree_about() -> None:
    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x = graph.input("x", ir.DataType.FLOAT, ["b", "l", D])
        part = layers.Linear(None, None, D, D, False, strategy="start")(graph, x)
        return {"y": ops.relu(graph, part)}

    program = Program.compile(make, nn.as_state_dict(torch.nn.Linear(D, D, False)), **TP, num_replicas=2)
    with pytest.raises(GraphError, match="Replicas disagree about the output y"):
        program.run({"x": np.ones((1, 2, D), np.float32)})


def test_a_program_that_was_cut_short(tmp_path: Path) -> None:
    from poptransformer.errors import PopTransformerError

    program, _, _ = logits_program(model_type="tp", num_replicas=2)
    weights = program.save(tmp_path / "model") / "replica-1" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        PopTransformerError, match="replica-1/weights.bin has .* bytes, expected .* Save the program again"
    ):
        Program.load(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    with pytest.raises(PopTransformerError, match="holds no saved program"):
        Program.load(tmp_path / "model")
