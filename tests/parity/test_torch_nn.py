# SPDX-License-Identifier: Apache-2.0
"""Layers API against torch.nn where the two coincide: outputs, gradients, and converted weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from poptransformer import nn
from poptransformer.errors import ConfigError

B, L, S, N, D = 3, 6, 7, 4, 32
PADDING = torch.arange(L)[None, :] >= torch.tensor([L, L - 2, L - 3])[:, None]
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(L)


def randomized(module: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return module


def assert_same_outputs_and_gradients(theirs: torch.nn.Module, ours: torch.nn.Module, outputs: Any) -> None:
    """Compares two outputs, then the gradients of every weight through the names that the converter gives."""
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-6, rtol=1e-5)
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    expected = nn.from_torch_nn({name: weight.grad for name, weight in theirs.named_parameters()})
    found = {name: weight.grad for name, weight in ours.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder(activation: str, norm_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        D, N, 40, 0.0, activation, batch_first=True, norm_first=norm_first, bias=bias
    )
    theirs = randomized(torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(D, bias=bias), False)).train()
    ours = nn.layers_from_torch_nn(theirs)
    x = torch.randn(B, L, D)
    outputs = [model(x, mask=CAUSAL.isinf(), src_key_padding_mask=PADDING) for model in (theirs, ours)]
    assert_same_outputs_and_gradients(theirs, ours, outputs)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerDecoderLayer(D, N, 40, 0.0, "gelu", batch_first=True, norm_first=norm_first)
    theirs = randomized(torch.nn.TransformerDecoder(layer, 2)).train()
    ours = nn.layers_from_torch_nn(theirs)
    x, memory = torch.randn(B, S, D), torch.randn(B, L, D)
    outputs = [model(x, memory, memory_key_padding_mask=PADDING) for model in (theirs, ours)]
    assert_same_outputs_and_gradients(theirs, ours, outputs)


@pytest.mark.parametrize("kdim", [None, 20])
def test_attention(kdim: int | None) -> None:
    torch.manual_seed(0)
    theirs = randomized(torch.nn.MultiheadAttention(D, N, batch_first=True, kdim=kdim, vdim=kdim))
    ours = nn.layers_from_torch_nn(theirs)
    q, k = torch.randn(B, L, D), torch.randn(B, S, kdim or D)
    expected, expected_weights = theirs(q, k, k)
    found, weights = ours(q, k, k, need_weights=True)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=1e-5)
    assert_same_outputs_and_gradients(theirs, ours, [expected, found])


def test_transformer_from_a_trained_state_dict() -> None:
    """The weights of a whole model, in which the transformer is one part among others."""
    torch.manual_seed(0)
    sizes = (D, N, 2, 1, 40, 0.0)
    theirs = torch.nn.ModuleDict({"net": torch.nn.Transformer(*sizes, batch_first=True), "head": torch.nn.Linear(D, 5)})
    biases = dict.fromkeys(("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"), True)
    ours = torch.nn.ModuleDict(
        {"net": nn.Transformer(*sizes, activation="relu", **biases), "head": torch.nn.Linear(D, 5)}
    )
    randomized(theirs)
    ours.load_state_dict(nn.from_torch_nn(theirs.state_dict()))
    src, tgt = torch.randn(B, S, D), torch.randn(B, L, D)
    outputs = [model["head"](model["net"](src, tgt, tgt_mask=CAUSAL)) for model in (theirs, ours)]
    assert_same_outputs_and_gradients(theirs, ours, outputs)


def test_the_fused_kernel_computes_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(D, N)
    fused = nn.MultiheadAttention(D, N, attention_kernel="fast_attention")
    fused.load_state_dict(plain.state_dict())
    x, bias = torch.randn(B, L, D), torch.randn(N, L, L)
    expected = plain(x, x, x, CAUSAL, PADDING, position_bias=bias)
    torch.testing.assert_close(fused(x, x, x, CAUSAL, PADDING, position_bias=bias), expected, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_converted() -> None:
    with pytest.raises(ConfigError, match="no add_bias_kv"):
        nn.from_torch_nn(torch.nn.MultiheadAttention(D, N, add_bias_kv=True).state_dict())
    with pytest.raises(ConfigError, match="Linear is none of torch.nn's transformer layers"):
        nn.layers_from_torch_nn(torch.nn.Linear(2, 2))
