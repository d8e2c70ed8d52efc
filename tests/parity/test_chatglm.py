# SPDX-License-Identifier: Apache-2.0
"""What ChatGLM-6B has of its own: the hub's layouts, packed weights, prompts, and configs that are not for it.

Logits and ids of its variants are compared in test_models.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import poptransformer
from poptransformer import models
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import HFConfig, open_checkpoint
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError
from poptransformer.models.chatglm.layers import ALPHA
from poptransformer.models.chatglm.prompt import HalfPrecisionRotary
from poptransformer.runtime import SessionSettings
from tests.parity import chatglm_reference
from tests.parity.chatglm_reference import ChatGLMReference, ChatGLMReferenceConfig
from tests.parity.conftest import scaled

ATOL = 1e-4
MASK, GMASK, BOS = 62, 63, 64
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, GMASK, BOS, 8, 9, 7]


def reference(**config: Any) -> ChatGLMReference:
    return scaled(ChatGLMReference(ChatGLMReferenceConfig(**config)))


def logits(model: ChatGLMReference, ids: list[int] = IDS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.numpy()


def write_config(folder: Path, model: ChatGLMReference, **changes: Any) -> None:
    """A config.json with the hub's keys."""
    given = model.config.to_dict()
    config = {key: value for key, value in given.items() if not key.startswith(("_", "transformers"))} | changes
    (folder / "config.json").write_text(json.dumps(config))


def write_bins(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """`pytorch_model-00001-of-0000N.bin` and their index, as the hub has them."""
    weight_map = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[shard::shards])
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_the_hubs_shards(tmp_path: Path) -> None:
    """fp16 in eight files, the tied head stored as well, and a buffer of rotary frequencies for each layer."""
    model = reference(num_layers=4).half().float()
    model.lm_head.weight.data = model.transformer.word_embeddings.weight.data
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    assert sum(name.endswith("rotary_emb.inv_freq") for name in tensors) == 4
    write_config(tmp_path, model)
    write_bins(tmp_path, tensors, 8)
    engine = poptransformer.load(tmp_path)
    np.testing.assert_allclose(engine.logits([IDS]), logits(model), atol=ATOL, rtol=0)
    assert engine.runtime.max_length == 64
    assert "lm_head.weight" not in engine.runtime.compiled.model.graph.initializers


def test_frequencies_are_those_of_the_original() -> None:
    """The 6B model's: 32 numbers, rounded to fp16 by torch."""
    with use_build(Build()):
        ours = HalfPrecisionRotary(None, "rotary_emb", 64, 2048).frequencies
    np.testing.assert_array_equal(ours, chatglm_reference.RotaryEmbedding(64).inv_freq.float().numpy())
    assert (ours != 1.0 / 10000 ** (np.arange(0, 64, 2, dtype=np.float32) / 64)).any()


def test_alpha_knows_no_number_of_layers() -> None:
    assert pytest.approx(56**0.5) == ALPHA


# -- packed weights ---------------------------------------------------------------------------------------------------


def packed(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stored integers, their scales, and the values that they stand for, number by number."""
    scales = (weight.abs().amax(1) / (2 ** (bits - 1) - 1)).half()
    integers = torch.round(weight / scales.float()[:, None]).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = integers * scales.float()[:, None]
    if bits == 8:
        return integers.to(torch.int8), scales, values
    pairs = integers.to(torch.int32).tolist()
    stored = [[(even & 15) << 4 | odd & 15 for even, odd in zip(r[::2], r[1::2], strict=True)] for r in pairs]
    return torch.tensor(stored, dtype=torch.uint8).view(torch.int8), scales, values


def write_packed(folder: Path, bits: int, with_embeddings: bool = False) -> ChatGLMReference:
    """A checkpoint like chatglm-6b-int4, and the model that it stands for."""
    model = reference().half().float()
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        is_table = name in ("transformer.word_embeddings", "lm_head")
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and (with_embeddings or not is_table):
            stored, scales, values = packed(module.weight.data, 8 if is_table else bits)
            tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = stored, scales
            module.weight.data = values
    write_config(folder, model, quantization_bit=bits, quantization_embeddings=with_embeddings)
    torch.save(tensors, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize(("bits", "with_embeddings"), [(4, False), (8, False), (4, True)], ids=["int4", "int8", "qe"])
def test_packed_weights(bits: int, with_embeddings: bool, tmp_path: Path) -> None:
    model = write_packed(tmp_path, bits, with_embeddings)
    engine = poptransformer.load(tmp_path)
    np.testing.assert_allclose(engine.logits([IDS]), logits(model), atol=ATOL, rtol=0)
    expected = model.generate(torch.tensor([IDS]), do_sample=False, pad_token_id=0, max_new_tokens=12)
    assert engine.generate(IDS, max_new_tokens=12) == expected[0, len(IDS) :].tolist()


def test_packed_weights_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`precision: int4` takes the stored integers and scales, in the order of the layers."""
    monkeypatch.setattr("poptransformer.runtime.compiled._cache_dtype", lambda model: "float32")
    model = write_packed(tmp_path, 4)
    recipe = {"*layers*": "int4", "*": "fp32"}
    engine = poptransformer.load(tmp_path, precision=recipe)
    reports = {report.name: report for report in engine.quantization_report.packed}
    assert len(reports) == 4 * 2
    assert all(report.error == 0 for report in reports.values())
    assert all(report.stored.startswith("int4") for report in reports.values())
    bodies = Engine(engine.runtime.compiled, engine.checkpoint, SessionSettings(use_native=False))
    np.testing.assert_allclose(bodies.logits([IDS]), logits(model), atol=ATOL, rtol=0)
    plain = poptransformer.load(tmp_path, precision="int4").quantization_report.packed
    assert {report.name for report in plain if report.error == 0} == set(reports)
    # The kernel rounds activations to int8.
    assert np.abs(engine.logits([IDS]) - logits(model)).mean() < 0.05 * logits(model).std()


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("chatglm")
    reference().save_pretrained(folder)
    return poptransformer.load(folder)


@pytest.mark.parametrize(
    ("ids", "missing"), [([1, 2, 3], "63 or 62"), ([1, 2, GMASK], "64"), ([1, BOS], "63 or 62")], ids=str
)
def test_a_prompt_without_its_marks(engine: Engine, ids: list[int], missing: str, tmp_path: Path) -> None:
    saved = poptransformer.load(engine.save(tmp_path / "saved"))
    for running in (engine, saved):
        for call, prompts in ((running.generate, ids), (running.logits, ids), (running.stream, [IDS, ids])):
            with pytest.raises(ConfigError, match=f"has no token {missing}, which the model needs"):
                call(prompts)


def test_padding_is_no_mark(tmp_path: Path) -> None:
    """Rows are padded with id 0, which here is the mask token, and the longer row has it at another place."""
    model = reference(gmask_token_id=0)
    model.save_pretrained(tmp_path)
    engine = poptransformer.load(tmp_path)
    rows = [[5, 0, 64, 7], [5, 6, 7, 8, 9, 0, 64]]
    padded = [rows[0] + [0] * 3, rows[1]]
    found = engine.logits(padded, [4, 7])
    np.testing.assert_allclose(found[0, :4], logits(model, rows[0])[0], atol=ATOL, rtol=0)
    np.testing.assert_allclose(found[1], logits(model, rows[1])[0], atol=ATOL, rtol=0)


def test_a_context_that_sees_one_way_only_is_another_model(engine: Engine) -> None:
    """The first token's logits depend on the context's last one, not on what comes after BOS."""
    first = engine.logits([IDS])[0, 0]
    for position, changes in ((10, True), (13, False)):
        other = list(IDS)
        other[position] += 1
        assert (np.abs(engine.logits([other])[0, 0] - first).max() > 1e-3) == changes


# -- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_encoding_2d": False}, "position_encoding_2d false; only 2D positions"),
        ({"pre_seq_len": 128}, r"tuned with a prefix of 128 \(P-Tuning\)"),
        ({"num_attention_heads": 8}, "hidden_size 48 must be a multiple of 4 times the 8 attention heads"),
    ],
    ids=["1d", "p-tuning", "heads"],
)
def test_configs_that_are_not_built(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = reference()
    write_config(tmp_path, model, **changes)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=message):
        poptransformer.load(tmp_path)


def test_later_versions_have_another_class(tmp_path: Path) -> None:
    first = {"model_type": "chatglm", "position_encoding_2d": True, "inner_hidden_size": 16384}
    later = {"model_type": "chatglm", "multi_query_attention": True, "padded_vocab_size": 65024}
    assert models.model_class_for(HFConfig(first)) is models.ChatGLMDecModel
    reference().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(later))
    with use_build(Build()):
        model = models.ChatGLMDecModel.from_checkpoint(open_checkpoint(tmp_path))
    with pytest.raises(ConfigError, match="is of another architecture with the same model_type chatglm"):
        model.build_graph()


def test_random_weights(tmp_path: Path) -> None:
    write_config(tmp_path, reference())
    with use_build(Build()):
        model = models.ChatGLMDecModel(override_hfconfig_from_json=str(tmp_path / "config.json"))
    model.build_graph()
    assert Engine.from_model(model).generate(IDS, max_new_tokens=3, ignore_eos=True)
