# SPDX-License-Identifier: Apache-2.0
"""Layers API: graph layers against the torch layers whose state dict they read, to 1e-5."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest
import torch

from poptransformer import layers, nn, ops
from poptransformer.graph import Graph
from poptransformer.layers.embedding_positions import length_of
from tests.parity.layers_api import (
    BIASED,
    MASKS,
    POSITIONS,
    B,
    D,
    GraphModel,
    L,
    N,
    S,
    Tensors,
    TorchModel,
    V,
    assert_close,
    declare,
    layer_arguments,
    masks,
    randomized,
    run_graph,
)

MODES = ("shard", "tp")


def ids(length: int = L) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {
        "ids": torch.randint(V, (B, length), generator=generator),
        "segments": torch.randint(2, (B, length), generator=generator),
    }


def tensor(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_encoder(positions: str | None, mask: str, norm_first: bool) -> None:
    check_encoder(positions, mask, norm_first)


def check_encoder(positions: str | None, mask: str, norm_first: bool, **options: Any) -> None:
    """Compares with torch; `options` say how the graph is compiled."""
    arguments = layer_arguments(norm_first)
    model = randomized(TorchModel(positions, "encoder", **arguments))
    inputs = ids() | masks(mask)
    x = model.embedding(inputs["ids"], segment_ids=inputs["segments"])
    expected = model.stack(
        x,
        inputs.get("attn_mask"),
        inputs.get("padding"),
        rotary_position_embedding_helper=model.embedding.get_rope_helper(),
        self_attn_position_bias=model.embedding.compute_position_bias(L, L),
    )

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        values = declare(graph, inputs)
        built = GraphModel(positions, "encoder", **arguments)
        x = built.embedding(graph, values["ids"], segment_ids=values["segments"])
        length = length_of(graph, values["ids"])
        y = built.stack(
            *(graph, x, values.get("attn_mask"), values.get("padding")),
            rotary_position_embedding_helper=built.embedding.get_rope_helper(),
            self_attn_position_bias=built.embedding.compute_position_bias(graph, length, length),
        )
        return {"embedded": x, "y": y}

    assert_close(run_graph(make, model, inputs, **options), {"embedded": x, "y": expected})


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_with_an_encoder_and_a_past(positions: str | None, mask: str, norm_first: bool) -> None:
    check_decoder(positions, mask, norm_first)


def check_decoder(positions: str | None, mask: str, norm_first: bool, **options: Any) -> None:
    """All tokens at once, and the same in two calls: three tokens, then the others with the past of the first."""
    arguments = layer_arguments(norm_first, cross_attention_kv_dim=20)
    model = randomized(TorchModel(positions, "decoder", **arguments))
    given = ids() | masks(mask) | {"memory": tensor(B, S, 20)}
    memory_mask, memory_padding = masks("added", L, S)["attn_mask"], masks("padding", L, S)["padding"]

    def call(start: int, end: int, past: Any) -> tuple[torch.Tensor, Any]:
        embedding = model.embedding
        attn_mask, padding = given.get("attn_mask"), given.get("padding")
        return model.stack(
            embedding(given["ids"][:, start:end], segment_ids=given["segments"][:, start:end], past_length=start),
            given["memory"] if past is None else None,
            tgt_mask=None if attn_mask is None else attn_mask[start:end, :end],
            memory_mask=memory_mask[start:end],
            tgt_key_padding_mask=None if padding is None else padding[:, :end],
            memory_key_padding_mask=memory_padding,
            rotary_position_embedding_helper=embedding.get_rope_helper(),
            self_attn_position_bias=embedding.compute_position_bias(end - start, end, start),
            past_kv=past,
            cache_present_kv=True,
        )

    whole, _ = call(0, L, None)
    first, past = call(0, 3, None)
    second, present = call(3, L, past)
    if mask in ("causal", "added", "both"):
        torch.testing.assert_close(torch.cat((first, second), 1), whole, atol=1e-5, rtol=1e-5)

    def program(start: int, end: int, past: Any) -> Mapping[str, Any]:
        inputs = {
            "ids": given["ids"][:, start:end],
            "segments": given["segments"][:, start:end],
            "memory_mask": memory_mask[start:end],
            "memory_padding": memory_padding,
        }
        if "attn_mask" in given:
            inputs["attn_mask"] = given["attn_mask"][start:end, :end].contiguous()
        if "padding" in given:
            inputs["padding"] = given["padding"][:, :end]
        if past is None:
            inputs["memory"] = given["memory"]
        else:
            inputs |= {f"past.{i}.{j}": kept for i, layer in enumerate(past) for j, kept in enumerate(layer)}

        def make(graph: Graph) -> Mapping[str, ir.Value]:
            values = declare(graph, {name: value for name, value in inputs.items() if "past" not in name})
            shape = ["rows", N, "before", D // N]
            pasts = [[graph.input(f"past.{i}.{j}", ir.DataType.FLOAT, shape) for j in range(4)] for i in range(2)]
            pasts = [] if past is None else pasts
            if past is None:
                del graph.ir_graph.inputs[-8:]
            built = GraphModel(positions, "decoder", **arguments)
            before = length_of(graph, pasts[0][0], 2) if pasts else 0
            length = length_of(graph, values["ids"])
            total = ops.add(graph, length, before) if pasts else length
            y, presents = built.stack(
                graph,
                built.embedding(graph, values["ids"], segment_ids=values["segments"], past_length=before),
                values.get("memory"),
                tgt_mask=values.get("attn_mask"),
                memory_mask=values["memory_mask"],
                tgt_key_padding_mask=values.get("padding"),
                memory_key_padding_mask=values["memory_padding"],
                rotary_position_embedding_helper=built.embedding.get_rope_helper(),
                self_attn_position_bias=built.embedding.compute_position_bias(graph, length, total, before),
                past_kv=pasts or None,
                cache_present_kv=True,
            )
            kept = {f"present.{i}.{j}": part for i, layer in enumerate(presents) for j, part in enumerate(layer)}
            return {"y": y, **kept}

        return run_graph(make, model, inputs, **options)

    def named(y: torch.Tensor, presents: Any) -> Tensors:
        return {"y": y} | {f"present.{i}.{j}": part for i, kept in enumerate(presents) for j, part in enumerate(kept)}

    assert_close(program(0, 3, None), named(first, past))
    assert_close(program(3, L, past), named(second, present))


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inner dim": {"inner_dim": 48},
    "biases": {"use_projection_bias": True, "use_ffn_bias": True},
    "dot product": {"attention_type": "dot_product"},
    "cosine": {"attention_type": "scaled_cosine"},
    "by d": {"scale_qk_dot_by_d": True},
    "by layer": {"scale_qk_dot_by_layer_idx": True},
    "other columns": {"kdim": 20, "vdim": 12},
}


@pytest.mark.parametrize("model_type", MODES)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention(kind: str, model_type: str) -> None:
    check_attention(kind, averaged=False, model_type=model_type)


def check_attention(kind: str, averaged: bool, **options: Any) -> None:
    """Compares output and attention weights with torch's."""
    arguments = ATTENTIONS[kind]
    attention = randomized(nn.MultiheadAttention(D, N, **arguments))
    keys, values = tensor(B, S, arguments.get("kdim", D), seed=3), tensor(B, S, arguments.get("vdim", D), seed=4)
    inputs = {"x": tensor(B, L, D), "memory": keys, "values": values, "attn_mask": masks("added", L, S)["attn_mask"]}
    output, weights = attention(
        inputs["x"], keys, values, inputs["attn_mask"], need_weights=True, average_attn_weights=averaged, layer_idx=2
    )

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x, keys, values, mask = declare(graph, inputs).values()
        values.shape = ir.Shape(["b", "s", arguments.get("vdim", D)])
        layer = layers.MultiheadAttention(None, None, D, N, **arguments)
        asked = {"need_weights": True, "average_attn_weights": averaged, "layer_idx": 2}
        y, shown = layer(graph, x, keys, values, mask, **asked)
        return {"y": y, "weights": shown}

    assert_close(run_graph(make, attention, inputs, **options), {"y": output, "weights": weights})


@pytest.mark.parametrize("options", [{"position_embedding_offset": 2}, {"mask_padding_in_positional_embed": True}])
def test_learned_positions_with(options: dict[str, Any]) -> None:
    arguments = {"vocab_size": V, "embedding_size": D, "pad_token_id": 0, "max_position_embeddings": 9, **options}
    embedding = randomized(nn.EmbeddingLayer(**arguments))
    inputs = {"ids": torch.tensor([[3, 1, 0, 0], [5, 6, 7, 0]])}

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        return {"x": layers.EmbeddingLayer(None, None, **arguments)(graph, declare(graph, inputs)["ids"])}

    assert_close(run_graph(make, embedding, inputs), {"x": embedding(inputs["ids"])})


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer(norm_first: bool) -> None:
    check_transformer(norm_first)


def check_transformer(norm_first: bool, **options: Any) -> None:
    """Compares encoder and decoder together with torch's."""
    sizes = {"d_model": D, "nhead": N, "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 40}
    model = randomized(nn.Transformer(**sizes, norm_first=norm_first, activation="relu", **BIASED))
    inputs = {"x": tensor(B, S, D), "memory": tensor(B, L, D, seed=5), "attn_mask": masks("causal")["attn_mask"]}
    expected = model(inputs["x"], inputs["memory"], tgt_mask=inputs["attn_mask"])

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        values = declare(graph, inputs)
        built = layers.Transformer(None, None, **sizes, norm_first=norm_first, activation="relu", **BIASED)
        return {"y": built(graph, values["x"], values["memory"], tgt_mask=values["attn_mask"])}

    assert_close(run_graph(make, model, inputs, **options), {"y": expected})


def test_extract_layer_idx() -> None:
    arguments = layer_arguments(False)
    model = randomized(TorchModel(None, "encoder", **arguments))
    inputs = {"x": tensor(B, L, D)}
    expected = model.stack(inputs["x"], extract_layer_idx=0)
    torch.testing.assert_close(expected, model.stack.layers[0](inputs["x"]))

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        built = GraphModel(None, "encoder", **arguments)
        return {"y": built.stack(graph, declare(graph, inputs)["x"], extract_layer_idx=0)}

    assert_close(run_graph(make, model, inputs), {"y": expected})


def test_a_row_that_may_see_nothing_is_a_number() -> None:
    attention = randomized(nn.MultiheadAttention(D, N))
    everything = torch.full((L, L), float("-inf"))
    inputs = {"x": tensor(B, L, D), "attn_mask": everything, "padding": torch.ones(B, L, dtype=torch.bool)}
    expected = attention(*[inputs["x"]] * 3, inputs["attn_mask"], inputs["padding"])
    assert torch.isfinite(expected).all()

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x, mask, padding = declare(graph, inputs).values()
        return {"y": layers.MultiheadAttention(None, None, D, N)(graph, x, x, x, mask, padding)}

    assert_close(run_graph(make, attention, inputs), {"y": expected})


def test_the_causal_mask_of_a_graph() -> None:
    encoder = randomized(nn.TransformerEncoder(nn.TransformerEncoderLayer(D, N, 40, 0.0), 2))
    inputs = {"x": tensor(B, L, D)}
    expected = encoder(inputs["x"], masks("causal")["attn_mask"])

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        x = declare(graph, inputs)["x"]
        layer = functools.partial(layers.TransformerEncoderLayer, d_model=D, nhead=N, dim_feedforward=40)
        return {"y": layers.TransformerEncoder(None, None, layer, 2)(graph, x, layers.causal_mask(graph, x))}

    assert_close(run_graph(make, encoder, inputs), {"y": expected})
