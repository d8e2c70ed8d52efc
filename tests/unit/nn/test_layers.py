# SPDX-License-Identifier: Apache-2.0
"""Layers API in torch: masks, initializers, the loss, and what the layers refuse."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from poptransformer import layers, nn
from poptransformer.errors import ConfigError
from poptransformer.layers.training_only import TRAINING_ONLY

LOWEST = torch.finfo(torch.float16).min


def test_the_causal_mask_is_half_precision_and_lowest_above_the_diagonal() -> None:
    mask = nn.create_broadcasted_autoregressive_mask(2, 3, 4)
    assert (mask.shape, mask.dtype) == ((2, 3, 4, 4), torch.float16)
    assert torch.equal(mask[1, 2], torch.full((4, 4), LOWEST).triu(1).half())
    ones = nn.create_autoregressive_mask(1, 1, 4, multiply_neg_inf=False, dtype=torch.float32)
    assert torch.equal(ones[0, 0], nn.create_2D_autoregressive_mask(4, 4, torch.float32))


def test_a_window_and_a_span() -> None:
    window = nn.create_autoregressive_mask(1, 1, 4, sliding_window_length=1, multiply_neg_inf=False)[0, 0]
    assert window.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0]]
    span = torch.tensor([[2, 1, 0, 1, 0]])  # two sequences in a row: of three tokens and of two
    mask = nn.create_autoregressive_mask(1, 1, 5, attention_span=span, multiply_neg_inf=False)[0, 0]
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).tril()
    assert torch.equal(mask.float(), 1 - blocks)
    with pytest.raises(ConfigError, match="exclude each other"):
        nn.create_autoregressive_mask(1, 1, 5, attention_span=span, sliding_window_length=2)


def test_padding_masks() -> None:
    kept = torch.tensor([[1, 1, 0]])
    assert nn.make_key_padding_mask_broadcastable(kept).tolist() == [[[[0, 0, LOWEST]]]]
    unchanged = nn.make_key_padding_mask_broadcastable(kept, torch.float32, False, False)
    assert (unchanged.dtype, unchanged.tolist()) == (torch.float32, [[[[1, 1, 0]]]])
    causal = nn.get_extended_attention_mask(kept, (1, 3), causal=True, dtype=torch.float32)
    assert (causal == 0)[0, 0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    with_past = nn.get_extended_attention_mask(torch.ones(1, 5), (1, 2), causal=True)
    assert (with_past == 0)[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    sparse = nn.make_sparse_mask_broadcastable(torch.eye(3), kept, multiply_neg_inf=False)
    assert torch.equal(sparse[0, 0].float(), 1 - torch.eye(3))
    assert nn.create_2D_full_mask(2, 3).tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("name", nn.INITIALIZERS)
def test_every_initializer_fills_a_matrix(name: str) -> None:
    tensor = torch.full((40, 60), 7.0)
    nn.create_initializer(name)(tensor)
    assert not (tensor == 7.0).any()


@pytest.mark.parametrize(
    ("spec", "std", "limit"),
    [
        ("uniform", 0.05 / 3**0.5, 0.05),
        ("normal", 0.05, None),
        ("truncated_normal", 0.05 * 0.8796, 0.1),
        ("lecun_normal", 0.05, 0.114),
        ("lecun_uniform", 0.05, 0.0867),
        ({"name": "variance_scaling", "scale": 4.0, "mode": "fan_out", "distribution": "normal"}, 0.1, None),
        ({"name": "normal", "std": 0.2}, 0.2, None),
    ],
)
def test_initializers_have_the_right_spread(spec: Any, std: float, limit: float | None) -> None:
    torch.manual_seed(0)
    tensor = torch.empty(400, 400)
    nn.create_initializer(spec)(tensor)
    assert float(tensor.std()) == pytest.approx(std, rel=0.02)
    assert limit is None or float(tensor.abs().max()) <= limit


def test_unknown_initializers() -> None:
    with pytest.raises(ConfigError, match="Nearest: xavier_uniform"):
        nn.create_initializer("xavier_unform")
    with pytest.raises(ConfigError, match="normal takes no sdt. Nearest: std"):
        nn.create_initializer({"name": "normal", "sdt": 1})


def test_loss_against_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 26), torch.randint(26, (4, 5))
    mask = torch.ones(4, 5)
    mask[1:, 3:] = 0
    chosen = torch.nn.functional.cross_entropy(logits[mask.bool()], labels[mask.bool()], reduction="sum")
    by_rows = nn.GPTLMHeadModelLoss(26, "batch_size", 1 / 26)(logits, labels, mask)
    torch.testing.assert_close(by_rows, chosen / 4 / 26)
    by_tokens = nn.GPTLMHeadModelLoss(26, "num_tokens", 1.0)
    torch.testing.assert_close(by_tokens(logits, labels, mask), chosen / mask.sum())
    rows = by_tokens(logits, labels, mask, reduce_batch=False)
    torch.testing.assert_close(rows.sum(), chosen)
    means = by_tokens(logits, labels, mask, reduce_batch=False, average_logps=True)
    torch.testing.assert_close(means, rows / mask.sum(-1))
    with pytest.raises(ConfigError, match="needs loss_weight 1.0"):
        nn.GPTLMHeadModelLoss(26, "num_tokens", 0.5)
    with pytest.raises(ConfigError, match="Invalid loss_scaling tokens"):
        nn.GPTLMHeadModelLoss(26, "tokens", 1.0)


PAIRS = [
    "MultiheadAttention",
    "TransformerEncoderLayer",
    "TransformerEncoder",
    "TransformerDecoderLayer",
    "TransformerDecoder",
    "Transformer",
    "EmbeddingLayer",
]


@pytest.mark.parametrize("name", PAIRS)
def test_one_mapping_of_arguments_builds_both_layers(name: str) -> None:
    ours = inspect.signature(getattr(nn, name)).parameters
    graphs = inspect.signature(getattr(layers, name).__init__).parameters
    for argument, parameter in ours.items():
        assert argument in graphs or argument in TRAINING_ONLY or argument == "relative_attention_bias", argument
        if argument in graphs and argument != "norm_layer":
            assert graphs[argument].default == parameter.default, argument


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "must be multiples of num_heads 5"),
        ({"batch_first": False}, "batch_first must be true"),
        ({"add_bias_kv": True}, "add_bias_kv must be false"),
        ({"attention_type": "scaled"}, "Invalid attention_type scaled, options"),
        ({"attention_kernel": "fast"}, "Invalid attention_kernel fast"),
    ],
)
def test_attention_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nn.MultiheadAttention(**{"embed_dim": 8, "num_heads": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_embedding_type": "rotery"}, "Nearest: rotary"),
        ({"max_position_embeddings": None}, "learned needs max_position_embeddings"),
        ({"position_embedding_type": "rotary"}, "rotary needs rotary_dim"),
        ({"position_embedding_type": "alibi"}, "alibi needs num_heads"),
        ({"position_embedding_type": "fixed", "position_embedding_offset": 1}, "position_embedding_offset must be 0"),
        ({"pos_scaling_factor": 2.0}, "pos_scaling_factor needs rotary or alibi"),
        ({"mask_padding_in_positional_embed": True}, "needs pad_token_id"),
    ],
)
def test_embedding_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nn.EmbeddingLayer(**{"vocab_size": 8, "embedding_size": 4, "max_position_embeddings": 4, **arguments})


def test_padding_has_no_vector_and_learns_none() -> None:
    embedding = nn.EmbeddingLayer(8, 4, pad_token_id=0, position_embedding_type=None)
    embedding(torch.tensor([[0, 3]])).sum().backward()
    weight = embedding.word_embeddings.weight
    assert not weight[0].any() and weight.grad is not None and not weight.grad[0].any() and weight.grad[3].all()


def test_fixed_positions_are_the_models_own_and_not_the_tutorials() -> None:
    table = nn.FixedPositionEmbeddingLayer(10, 64).fpe
    assert not table.requires_grad
    position = torch.arange(10.0)[:, None]
    ours = position * 10000 ** (-torch.arange(32) / 31)
    torch.testing.assert_close(table, torch.stack((ours.sin(), ours.cos()), -1).flatten(1), atol=1e-5, rtol=1e-4)


def test_relative_buckets_are_those_of_t5() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    for bidirectional in (True, False):
        layer = nn.RelativePositionEmbeddingLayer(2, bidirectional_relative_attention=bidirectional)
        distances = torch.arange(-128, 129)
        expected = T5Attention._relative_position_bucket(distances, bidirectional, 32, 128)
        assert torch.equal(layer.buckets, expected)


def test_alibi_slopes_are_the_papers() -> None:
    slopes = nn.AlibiPositionEmbeddingLayer(8).slopes.flatten()
    torch.testing.assert_close(slopes, 2.0 ** -torch.arange(1.0, 9.0))
    twelve = nn.AlibiPositionEmbeddingLayer(12).slopes.flatten()
    torch.testing.assert_close(twelve[8:], 2.0 ** -torch.tensor([0.5, 1.5, 2.5, 3.5]))


def test_stacks_draw_each_layer_anew() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2)
    first, second = (layer.self_attn.proj_q_dense_layer.weight for layer in encoder.layers)
    assert not torch.equal(first, second)
    with pytest.raises(ConfigError, match="extract_layer_idx must be from 0 to 1, found 2"):
        encoder(torch.zeros(1, 2, 8), extract_layer_idx=2)


def test_names_of_weights() -> None:
    keys = set(nn.TransformerDecoderLayer(8, 2, 8, use_ffn_bias=True).state_dict())
    projections = [f"proj_{part}_dense_layer.weight" for part in ("q", "k", "v", "output")]
    expected = {f"{part}.{name}" for part in ("self_attn", "multihead_attn") for name in projections}
    expected |= {f"norm{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    expected |= {f"ffn.ffn.{i}.linear_layer.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert keys == expected
