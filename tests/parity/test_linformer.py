# SPDX-License-Identifier: Apache-2.0
"""Linformer: the paper's formula written out, full attention where nothing is projected, graphs, and packed rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from poptransformer import layers, nn
from poptransformer.attention_rules import LINFORMER_STYLES
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.program import Program
from tests.parity.layers_api import BIASED, Tensors, assert_close, randomized

B, n, k, N, D = 4, 12, 5, 4, 32
LENGTHS = (12, 3, 7, 1)
SIZES = {"max_sequence_length": n, "projected_dims": k}


def rows(length: int = n, seed: int = 2) -> torch.Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(seed))


def padding(length: int = n) -> torch.Tensor:
    return torch.arange(length)[None, :] >= torch.tensor(LENGTHS)[:, None]


def packed(x: torch.Tensor) -> torch.Tensor:
    """The valid tokens of padded rows, one after the other."""
    return x[~padding(x.shape[1])][None]


def encoder(style: str, num_layers: int = 2, **more: Any) -> nn.LinformerEncoder:
    """Matrices as layers draw them, which neither grow values nor their rounding; norms and biases of every kind."""
    torch.manual_seed(0)
    layer = nn.LinformerEncoderLayer(
        D, N, **SIZES, attention_style=style, dim_feedforward=40, dropout=0.0, **BIASED, **more
    )
    model = nn.LinformerEncoder(layer, num_layers, torch.nn.LayerNorm(D))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return model.eval()


def in_float64(style: str, **more: Any) -> nn.LinformerEncoder:
    """The same encoder, where what is left of a difference by rounding is far from one that is no rounding."""
    return encoder(style, attention_softmax_fp32=False, **more).double()


def make_encoder(graph: Graph, style: str, num_layers: int = 2, **more: Any) -> layers.LinformerEncoder:
    layer = functools.partial(
        layers.LinformerEncoderLayer,
        **{"d_model": D, "nhead": N, "attention_style": style, "dim_feedforward": 40, **SIZES, **BIASED, **more},
    )
    return layers.LinformerEncoder(None, None, layer, num_layers, functools.partial(layers.LayerNorm, input_size=D))


def make_packed(graph: Graph, style: str, **more: Any) -> Mapping[str, ir.Value]:
    src = graph.input("x", ir.DataType.FLOAT, [1, "tokens", D])
    lengths = graph.input("lengths", ir.DataType.INT64, ["batch"])
    return {"y": make_encoder(graph, style, **more)(graph, src, lengths=lengths)}


def run(make: Any, module: torch.nn.Module, inputs: Mapping[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    return Program.compile(make, nn.as_state_dict(module), **options).run(inputs)


def papers_formula(attention: Any, x: np.ndarray, E: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Equation 7 of arXiv 2006.04768, head by head, in float64: softmax(Q (E K)^T / sqrt(d)) (F V), then W^O."""

    def linear(name: str, y: np.ndarray) -> np.ndarray:
        layer = getattr(attention, name)
        return y @ layer.weight.double().detach().numpy().T + layer.bias.double().detach().numpy()

    q, key, value = (linear(f"proj_{kind}_dense_layer", x) for kind in "qkv")
    size, heads = D // N, []
    for head in range(N):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ (E[:, : len(x)] @ key[:, part]).T / np.sqrt(size)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ (F[:, : len(x)] @ value[:, part]))
    return linear("proj_output_dense_layer", np.concatenate(heads, -1))


@pytest.mark.parametrize("style", LINFORMER_STYLES)
def test_the_papers_formula(style: str) -> None:
    attention = randomized(
        nn.LinformerAttention(D, N, **SIZES, attention_style=style, use_projection_bias=True, use_ffn_bias=True)
    )
    shared = torch.randn(k, n, generator=torch.Generator().manual_seed(3)) if style.endswith("layers") else None
    E = shared if shared is not None else attention.proj_e.weight.detach()
    F = attention.proj_f.weight.detach() if style.endswith("heads") else E
    x = rows()
    found = attention(x, x, x, key_padding_mask=padding(), projection=shared).detach()
    for row, length, result in zip(x, LENGTHS, found, strict=True):
        expected = papers_formula(attention, row[:length].double().numpy(), E.double().numpy(), F.double().numpy())
        np.testing.assert_allclose(result[:length], expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [None, "fast_attention"])
def test_with_identity_projections_it_is_torchs_attention(kernel: str | None) -> None:
    reference = torch.nn.MultiheadAttention(D, N, batch_first=True)
    randomized(reference)
    attention = nn.LinformerAttention(
        D, N, n, n, use_projection_bias=True, use_ffn_bias=True, projection_initializer="eye", attention_kernel=kernel
    )
    attention.load_state_dict(nn.from_torch_nn(reference.state_dict()), strict=False)
    torch.testing.assert_close(attention.proj_e.weight, torch.eye(n))
    x = rows()
    torch.testing.assert_close(attention(x, x, x), reference(x, x, x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("style", "count"), list(zip(LINFORMER_STYLES, (24, 12, 1), strict=True)))
def test_matrices_of_twelve_layers(style: str, count: int) -> None:
    """The paper's counts (section 4, "Additional efficiency techniques")."""
    model = encoder(style, num_layers=12)
    matrices = [weight for weight in model.parameters() if tuple(weight.shape) == (k, n)]
    assert len({weight.data_ptr() for weight in matrices}) == len(matrices) == count
    assert sum(tuple(weight.shape) == (k, n) for weight in model.state_dict().values()) == count
    program = Program.compile(lambda graph: make_packed(graph, style, num_layers=12), nn.as_state_dict(model))
    stored = [weight for weight in program.report.weights if sorted(weight.shape) == [k, n]]
    assert len({weight.name for weight in stored}) == len(stored) == count


def test_every_layer_reads_the_one_matrix() -> None:
    model = encoder("linformer-shared-layers")
    model(rows()).square().sum().backward()
    whole = model.projection.weight.grad.clone()
    parts = []
    for frozen in range(2):
        model.zero_grad()
        projections = [model.projection.weight.detach()] * 2
        projections[frozen] = model.projection.weight
        x = rows()
        for layer, projection in zip(model.layers, projections, strict=True):
            x = layer(x, projection=projection)
        model.norm(x).square().sum().backward()
        parts.append(model.projection.weight.grad.clone())
        assert parts[-1].abs().max() > 1e-4
    torch.testing.assert_close(sum(parts), whole, atol=1e-4, rtol=1e-4)


def losses(model: Any, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Valid outputs `[T, D]` and all gradients of a loss, of rows that are padded, trimmed and packed."""
    mask, targets = padding(), rows(seed=9).to(x)[~padding()]

    def trimmed() -> torch.Tensor:
        """Row by row, each without padding."""
        return torch.cat([model(row[None, :length])[0] for row, length in zip(x, LENGTHS, strict=True)])

    ways = {
        "padded": lambda: model(x, mask)[~mask],
        "trimmed": trimmed,
        "packed": lambda: model(packed(x), lengths=LENGTHS)[0],
    }
    found = {}
    for name, compute in ways.items():
        model.zero_grad()
        output = compute()
        (output - targets).square().sum().backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        found[name] = output.detach(), gradients
    return found


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("style", LINFORMER_STYLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_padding_lose_nothing(style: str, norm_first: bool, dtype: torch.dtype) -> None:
    """In training: outputs and every gradient equal those of padded rows."""
    make, tolerance = (encoder, 2.5e-6) if dtype == torch.float32 else (in_float64, 1e-13)
    found = losses(make(style, norm_first=norm_first).train(), rows().to(dtype))
    expected, gradients = found.pop("padded")
    assert expected.shape == (sum(LENGTHS), D) and expected.dtype == dtype and found
    for outputs, others in found.values():
        torch.testing.assert_close(outputs, expected, atol=tolerance, rtol=0)
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            assert scale > 1e-3 or "proj_k_dense_layer.bias" in name
            torch.testing.assert_close(others[name], gradient, atol=tolerance * max(scale, 1.0), rtol=0, msg=name)


@pytest.mark.parametrize("style", LINFORMER_STYLES)
def test_what_padding_holds_changes_nothing(style: str) -> None:
    model, x, mask = encoder(style), rows(), padding()
    expected = model(x, mask)[~mask]
    other = model(torch.where(mask[..., None], 1e3, x), mask)[~mask]
    torch.testing.assert_close(other, expected, atol=1e-6, rtol=0)
    leaking = model(x)[~mask]  # without a mask, padding does leak
    assert (leaking - expected).abs().max() > 1e-2


def test_lengths_may_be_a_tensor() -> None:
    model, x = encoder("linformer-shared-heads"), packed(rows())
    torch.testing.assert_close(model(x, lengths=torch.tensor(LENGTHS)), model(x, lengths=LENGTHS), atol=0, rtol=0)


def test_fewer_columns_of_padding_change_nothing() -> None:
    """A batch whose rows are all short needs no columns up to n."""
    longest = max(LENGTHS[1:])
    for model, tolerance in ((encoder("linformer-shared-kv"), 2.5e-6), (in_float64("linformer-shared-kv"), 1e-13)):
        x, mask = rows()[1:].to(next(model.parameters())), padding()[1:]
        trimmed, is_padding = model(x[:, :longest], mask[:, :longest]), mask[:, :longest]
        whole = model(x, mask)[:, :longest]
        torch.testing.assert_close(trimmed[~is_padding], whole[~is_padding], atol=tolerance, rtol=0)


@pytest.mark.parametrize("model_type", ["shard", "tp"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("style", LINFORMER_STYLES)
def test_graphs(style: str, norm_first: bool, model_type: str) -> None:
    model, x, mask = encoder(style, norm_first=norm_first), rows(), padding()
    expected = model(x, mask)

    def make_padded(graph: Graph) -> Mapping[str, ir.Value]:
        src = graph.input("x", ir.DataType.FLOAT, ["batch", "tokens", D])
        masked = graph.input("padding", ir.DataType.BOOL, ["batch", "tokens"])
        return {"y": make_encoder(graph, style, norm_first=norm_first)(graph, src, masked)}

    found = run(make_padded, model, {"x": x.numpy(), "padding": mask.numpy()}, model_type=model_type)
    assert_close(found, {"y": expected})
    shorter: Tensors = {"x": x[2:3, :7].contiguous(), "padding": torch.zeros(1, 7, dtype=torch.bool)}
    again = run(make_padded, model, {name: value.numpy() for name, value in shorter.items()})
    np.testing.assert_allclose(again["y"][0], expected[2, :7].detach(), atol=1e-5)

    inputs = {"x": packed(x).numpy(), "lengths": np.array(LENGTHS)}
    together = run(lambda graph: make_packed(graph, style, norm_first=norm_first), model, inputs, model_type=model_type)
    assert_close(together, {"y": packed(expected)})
    np.testing.assert_allclose(together["y"], packed(torch.from_numpy(found["y"])), atol=2.5e-6, rtol=0)


def test_a_plain_encoder_layer_takes_linformer_attention() -> None:
    arguments = {"d_model": D, "nhead": N, "dim_feedforward": 40, "extra_attention_params": SIZES, **BIASED}
    layer = randomized(nn.TransformerEncoderLayer(attention_module=nn.LinformerAttention, dropout=0.0, **arguments))
    x, mask = rows(), padding()

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        src = graph.input("x", ir.DataType.FLOAT, ["batch", "tokens", D])
        masked = graph.input("padding", ir.DataType.BOOL, ["batch", "tokens"])
        built = layers.TransformerEncoderLayer(None, None, attention_module=layers.LinformerAttention, **arguments)
        return {"y": built(graph, src, src_key_padding_mask=masked)}

    found = run(make, layer, {"x": x.numpy(), "padding": mask.numpy()})
    assert_close(found, {"y": layer(x, src_key_padding_mask=mask)})


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="Invalid attention_style linformer-shared-layer, options: .*heads"):
        nn.LinformerAttention(D, N, n, k, "linformer-shared-layer")
    with pytest.raises(ConfigError, match="projected_dims must be from 1 to max_sequence_length 12, found 13"):
        nn.LinformerAttention(D, N, n, 13)
    with pytest.raises(ConfigError, match="scaled_cosine compares single keys"):
        nn.LinformerAttention(D, N, n, k, attention_type="scaled_cosine")
    attention, x = nn.LinformerAttention(D, N, n, k), rows()
    with pytest.raises(ConfigError, match="takes no attn_mask"):
        attention(x, x, x, torch.zeros(n, n))
    with pytest.raises(ConfigError, match="A row has 13 tokens, but max_sequence_length is 12"):
        attention(*[rows(13)] * 3)
    with pytest.raises(ConfigError, match=r"2 sequences with 5 tokens must have the shape \[1, 5, ...\], found"):
        attention(x, x, x, lengths=[2, 3])
    with pytest.raises(ConfigError, match="give lengths or key_padding_mask, not both"):
        attention(x, x, x, key_padding_mask=padding(), lengths=[12])
    with pytest.raises(ConfigError, match=r"key_padding_mask must be \[rows, keys\] \[4, 12\]"):
        attention(x, x, x, key_padding_mask=torch.zeros(4, 1, 12))
    with pytest.raises(ConfigError, match="linformer-shared-layers needs the projection that layers share"):
        nn.LinformerAttention(D, N, n, k, "linformer-shared-layers")(x, x, x)
    with pytest.raises(ConfigError, match="has projections of its own and takes none"):
        attention(x, x, x, projection=torch.zeros(k, n))
    with pytest.raises(ConfigError, match=r"must not be negative, found \[13, -1\]"):
        attention(x[:1], x[:1], x[:1], lengths=[13, -1])


# Too few, too many, some of them negative, and one row of more than n tokens.
@pytest.mark.parametrize("lengths", [[12, 3, 7], [12, 3, 7, 2], [12, 12, -1], [10, 12, -1, 2], [], [23]], ids=str)
def test_a_graph_refuses_lengths_of_other_rows(lengths: list[int]) -> None:
    style = "linformer-shared-kv"
    program = Program.compile(lambda graph: make_packed(graph, style), nn.as_state_dict(encoder(style)))
    inputs = {"x": packed(rows()).numpy(), "lengths": np.array(lengths, np.int64)}
    with pytest.raises(Fail, match="reshape" if lengths != [23] else "MatMul dimension mismatch"):
        program.run(inputs)


def test_sequences_of_no_tokens() -> None:
    style = "linformer-shared-heads"
    model = encoder(style)
    program = Program.compile(lambda graph: make_packed(graph, style), nn.as_state_dict(model))
    for lengths in ([0, 3, 0, 2], [0], []):
        x = rows()[:1, : sum(lengths)]
        found = program.run({"x": x.numpy(), "lengths": np.array(lengths, np.int64)})["y"]
        assert found.shape == x.shape
        if lengths:
            np.testing.assert_allclose(found, model(x, lengths=lengths).detach(), atol=1e-5)


def test_scores_by_the_number_of_the_layer() -> None:
    attention = randomized(nn.LinformerAttention(D, N, n, k, scale_qk_dot_by_layer_idx=True))
    x = rows()

    def make(graph: Graph) -> Mapping[str, ir.Value]:
        src = graph.input("x", ir.DataType.FLOAT, ["batch", "tokens", D])
        built = layers.LinformerAttention(None, None, D, N, n, k, scale_qk_dot_by_layer_idx=True)
        return {"y": built(graph, src, src, src, layer_idx=3)}

    expected = attention(x, x, x, layer_idx=3)
    assert_close(run(make, attention, {"x": x.numpy()}), {"y": expected})
    assert (attention(x, x, x, layer_idx=0) - expected).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="needs layer_idx in the call"):
        attention(x, x, x)
