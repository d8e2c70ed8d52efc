# SPDX-License-Identifier: Apache-2.0
"""Language models of the layers API and of torch.nn in the engine, on replicas and stages, against torch."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

import poptransformer
from poptransformer import layers, nn
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import blank_checkpoint, open_checkpoint
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.models import LayersLM
from tests.parity.dequantized import put_together, weights_of
from tests.parity.layers_api import randomized
from tests.parity.test_models import padded

V, D, N, P, LAYERS = 37, 32, 4, 48, 2
ROWS = [np.array([3, 1, 4, 1, 5, 9, 2, 6]), np.array([5, 3, 5]), np.array([8])]
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": N,
    "intermediate_size": 44,
    "max_position_embeddings": P,
}
MODELS: dict[str, dict[str, Any]] = {
    "learned": {},
    "fixed, norms first": {"position_embedding_type": "fixed", "norm_first": True, "use_ffn_bias": True},
    "rotary": {"position_embedding_type": "rotary", "rotary_dim": 4, "hidden_act": "silu", "final_norm": False},
    "no positions, cosine": {"position_embedding_type": None, "attention_type": "scaled_cosine", "head_bias": False},
    "relative": {"position_embedding_type": "relative", "norm_first": True},
    "alibi, cosine": {"position_embedding_type": "alibi", "attention_type": "scaled_cosine"},
    "biases": {"use_projection_bias_in_attention": True, "use_ffn_bias_in_attention": True, "hidden_act": "relu"},
}
PLANS: dict[str, dict[str, Any]] = {
    "one": {},
    "2 replicas": {"model_type": "tp", "num_replicas": 2},
    "4 replicas": {"model_type": "tp", "num_replicas": 4},
    "stages": {"layer_per_ipu": [1, 0, 1]},
    "replicas in stages": {"model_type": "tp", "num_replicas": 2, "layer_per_ipu": [1, 1, 0]},
}


class TorchLM(torch.nn.Module):
    """A language model of plain torch.nn layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(V, D)
        self.positions = torch.nn.Embedding(P, D) if kind != "sines" else None
        self.register_buffer("sines", torch.sin(torch.arange(P * D).reshape(P, 1, D) / 7))
        bias, norm_first = kind != "without biases", kind == "norms first"
        layer = torch.nn.TransformerEncoderLayer(
            D, N, 44, 0.1, "gelu" if norm_first else "relu", batch_first=True, norm_first=norm_first, bias=bias
        )
        norm = torch.nn.LayerNorm(D, bias=bias) if norm_first else None
        self.encoder = torch.nn.TransformerEncoder(layer, LAYERS, norm, enable_nested_tensor=False)
        self.head = torch.nn.Linear(D, V, bias=bias)
        self.scale = math.sqrt(D) if kind == "sines" else 1.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        table = self.sines[:, 0] if self.positions is None else self.positions.weight
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.encoder(self.embedding(ids) * self.scale + table[:length], mask, is_causal=True))

    def converted(self) -> nn.LanguageModel:
        positions = self.sines if self.positions is None else self.positions
        parts = {"embedding": self.embedding, "encoder": self.encoder, "head": self.head}
        return nn.LanguageModel.from_torch_nn(**parts, positions=positions, scale=self.scale)


def torch_logits(model: Any, row: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(row))[None])[0].numpy()


def check(engine: Engine, model: Any) -> None:
    """Logits of rows of different lengths, and greedy texts token by token and in one call."""
    for row, result in zip(ROWS, engine.logits(*padded(ROWS)), strict=True):
        expected = torch_logits(model, row)
        assert expected.std() > 0.2
        np.testing.assert_allclose(result[: len(row)], expected, atol=1e-4, rtol=0)
    answers = []
    for row in ROWS:
        ids = row.tolist()
        for _ in range(8):
            ids.append(int(torch_logits(model, ids)[-1].argmax()))
        answers.append(ids[len(row) :])
    prompts = [row.tolist() for row in ROWS]
    assert engine.generate(prompts, max_new_tokens=8) == answers
    params = engine.params(prompts, max_new_tokens=8)
    assert engine.runtime.generate(prompts, params, engine.stop_token_ids) == answers


@pytest.mark.parametrize(
    ("kind", "plan"),
    [("learned", plan) for plan in PLANS]
    + [(kind, plan) for kind in list(MODELS)[1:] for plan in ("one", "replicas in stages")],
)
def test_layers_api(kind: str, plan: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomized(nn.LanguageModel(**SIZES, **MODELS[kind]))
    check(poptransformer.load(model.save(tmp_path), max_length=P, threads=1, **PLANS[plan]), model)


@pytest.mark.parametrize("kind", ["relu", "norms first", "sines", "without biases"])
def test_torch_nn(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomized(TorchLM(kind))
    ours = model.converted()
    for row in ROWS:
        np.testing.assert_allclose(torch_logits(ours, row), torch_logits(model, row), atol=1e-5, rtol=1e-5)
    check(poptransformer.load(ours.save(tmp_path), threads=1), model)


@pytest.mark.parametrize("plan", ["one", "2 replicas"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "fp8"])
def test_precisions(precision: str, plan: str, tmp_path: Path) -> None:
    """Torch with the dequantized weights of all replicas; what remains is inputs rounded to 8 bits, and fp16 caches."""
    torch.manual_seed(0)
    model = nn.LanguageModel(**{**SIZES, "hidden_size": 128, "intermediate_size": 256}, use_ffn_bias=True).eval()
    folder = model.save(tmp_path)
    plain = poptransformer.load(folder, precision, threads=1, fuse=False, **PLANS[plan])
    stored = {weight.precision for weight in plain.quantization_report.weights}
    assert stored == {precision} | ({"int8"} if precision in ("int4", "fp8") else set())  # the head has 8 bits
    compiled = (plain.runtime.compiled, *plain.runtime.compiled.peers)
    shares = [weights_of(part.model.graph, plain.quantization_report) for part in compiled]
    other, exact = copy.deepcopy(model), torch_logits(model, ROWS[0])
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            whole = put_together([share[name] for share in shares], tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(whole[: len(parameter)]))  # without the rows that fill up the last share
    expected = torch_logits(other, ROWS[0])
    assert np.abs(expected - exact).max() > 1e-5, "it is another model"
    found = poptransformer.load(folder, precision, threads=1, **PLANS[plan]).logits(ROWS[0])[0]
    bound = {"fp16": 1e-4, "fp8": 0.06}.get(precision, 0.02)
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


class Decoder(torch.nn.Module):
    """A decoder without an encoder, whose scores are divided by the layer's number."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "d_model": D,
        "nhead": N,
        "dim_feedforward": 44,
        "norm_first": True,
        "add_cross_attention": False,
        "scale_qk_dot_by_layer_idx": True,
    }

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingLayer(
            V, D, position_embedding_type="rotary", rotary_dim=8, max_position_embeddings=P
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**self.ARGUMENTS, dropout=0.0), LAYERS)
        self.head = torch.nn.Linear(D, V)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.create_2D_autoregressive_mask(ids.shape[1], ids.shape[1]).bool()
        rotary = self.embedding.get_rope_helper()
        x = self.decoder(self.embedding(ids), tgt_mask=mask, rotary_position_embedding_helper=rotary)
        return self.head(x)


class GraphDecoder(LayersLM):
    """The same for the engine."""

    def build_model_graph(self) -> ir.Value:
        graph, step = self.graph, self.step
        positions = {"position_embedding_type": "rotary", "rotary_dim": 8, "max_position_embeddings": P}
        embedding = layers.EmbeddingLayer(None, "embedding", V, D, **positions)
        layer = functools.partial(layers.TransformerDecoderLayer, **Decoder.ARGUMENTS)
        decoder = layers.TransformerDecoder(None, "decoder", layer, LAYERS)
        head = layers.LMHead(None, "head", V, D, use_bias=True)
        x = embedding(graph, step.input_ids, position_ids=step.position_ids)
        x = decoder(graph, x, rotary_position_embedding_helper=embedding.get_rope_helper(), step=step)
        return head(graph, step.chosen(x))


@pytest.mark.parametrize("plan", ["one", "4 replicas"])
def test_a_decoder_in_a_model_class(plan: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomized(Decoder())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "layers_lm"}))
    build = {key: value for key, value in PLANS[plan].items() if key != "layer_per_ipu"}
    with use_build(Build(**build)):
        engine = Engine.from_model(GraphDecoder.from_checkpoint(open_checkpoint(tmp_path)))
    check(engine, model)


def test_what_save_and_load_refuse(tmp_path: Path) -> None:
    model = nn.LanguageModel(**SIZES)
    model.save(model.save(tmp_path / "mine"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(PopTransformerError, match="other is not empty and no saved language model"):
        model.save(tmp_path / "other")
    rotary = nn.LanguageModel(**SIZES, position_embedding_type="rotary", rotary_dim=8).save(tmp_path / "rotary")
    config = json.loads((rotary / "config.json").read_text())
    for wrong, message in (
        ({"rotary_dim": 10}, "rotary_dim is 10, but a head has 8 columns"),
        ({"num_attention_heads": 5}, "5"),
        ({"norm_first": 1}, "norm_first in .* is 1; expected true or false"),
        ({"hidden_act": "swoosh"}, "Invalid activation swoosh"),
    ):
        (rotary / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(PopTransformerError, match=message):
            poptransformer.load(rotary)


def test_wrong_numbers_of_replicas_and_stages(tmp_path: Path) -> None:
    folder = nn.LanguageModel(**SIZES).save(tmp_path)
    message = r"num_replicas=3 does not divide 4 heads; valid: 1, 2, 4; .* \(encoder.layers.0.self_attn\)"
    with pytest.raises(ConfigError, match=message):
        poptransformer.load(folder, model_type="tp", num_replicas=3)
    with pytest.raises(ConfigError, match=r"layer_per_ipu sums to 3, model has 2 layers; try \[1,1\]"):
        poptransformer.load(folder, layer_per_ipu=[1, 2])
    with pytest.raises(ConfigError, match="embeddings for 48 positions"):
        poptransformer.load(folder, max_length=49)


def test_biases_of_positions_need_caches_of_32_bits(tmp_path: Path) -> None:
    model = randomized(nn.LanguageModel(**SIZES, position_embedding_type="alibi"))
    with pytest.raises(ConfigError, match="with alibi positions keys and values keep 32 bits"):
        poptransformer.load(model.save(tmp_path), fp8_cache=True)
    engine = poptransformer.load(tmp_path, "int8", threads=1)
    assert {state.dtype for state in engine.runtime.compiled.info.states} == {"float32"}


def test_what_cannot_be_converted() -> None:
    model = TorchLM("relu")
    parts = {"embedding": model.embedding, "encoder": model.encoder}
    with pytest.raises(ConfigError, match="The head maps 32 columns to 9 logits; expected 32 to 37"):
        nn.LanguageModel.from_torch_nn(**parts, head=torch.nn.Linear(D, 9))
    with pytest.raises(ConfigError, match=r"positions has shape \[2, 5, 32\]; expected \[P, 32\]"):
        nn.LanguageModel.from_torch_nn(**parts, head=model.head, positions=torch.zeros(2, 5, D))
    with pytest.raises(ConfigError, match="encoder is a Linear; expected a torch.nn.TransformerEncoder"):
        nn.LanguageModel.from_torch_nn(embedding=model.embedding, encoder=model.head, head=model.head)
    model.encoder.norm = torch.nn.LayerNorm(D, eps=1e-3)
    with pytest.raises(ConfigError, match="expected a LayerNorm with the eps 1e-05 of the layers"):
        nn.LanguageModel.from_torch_nn(**parts, head=model.head)


@pytest.mark.parametrize("what", ["mask", "memory", "cache"])
def test_a_step_takes_no_masks(what: str) -> None:
    """Attention over the engine's cache is causal; what it would ignore is refused."""

    class Masked(LayersLM):
        def build_model_graph(self) -> ir.Value:
            graph, step = self.graph, self.step
            x = layers.Embedding(None, "embedding", V, D)(graph, step.input_ids)
            more = {"mask": {"attn_mask": x}, "memory": {}, "cache": {"cache_present_kv": True}}[what]
            keys = layers.Embedding(None, "other", V, D)(graph, step.input_ids) if what == "memory" else x
            return layers.MultiheadAttention(None, "a", D, N)(graph, x, keys, keys, step=step, layer_idx=0, **more)

    with use_build(Build()), pytest.raises(ConfigError, match="With step, attention is causal over the engine's cache"):
        Masked.from_checkpoint(blank_checkpoint({**SIZES, "model_type": "layers_lm"})).build_graph()
