# SPDX-License-Identifier: Apache-2.0
"""What ChatGLM2's checkpoints have and other models' do not: layouts, packed weights, configs, the small model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmConfig, GlmForCausalLM

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import HFConfig, MissingWeightError, open_checkpoint
from poptransformer.errors import ConfigError
from poptransformer.models import ChatGLM2DecModel, model_class_for
from poptransformer.models.chatglm2.settings import Settings
from tests.parity.conftest import scaled
from tests.parity.variants import VARIANTS, Variant

IDS = np.arange(1, 24)
TINY = Path(__file__).parents[2] / "examples" / "chatglm2" / "tiny"
BY_NAME: dict[str, Variant] = {variant.name: variant for variant in VARIANTS}
HUB_6B = {
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "padded_vocab_size": 65024,
    "seq_length": 32768,
    "add_qkv_bias": True,
}


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(IDS)[None]).logits[0].numpy()


def write(folder: Path, name: str = "chatglm2") -> Any:
    """A variant's checkpoint; returns the model in PyTorch."""
    variant = BY_NAME[name]
    model = scaled(variant.make())
    (variant.write or (lambda model, folder: model.save_pretrained(folder)))(model, folder)
    return model


def changed(folder: Path, **config: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))


def test_the_class_is_found_by_the_config() -> None:
    for config in (HUB_6B, {"model_type": "glm"}, json.loads((TINY / "config.json").read_text())):
        assert model_class_for(HFConfig(config)) is ChatGLM2DecModel
    first = {"model_type": "chatglm", "position_encoding_2d": True, "inner_hidden_size": 16384}
    with use_build(Build()):
        model = ChatGLM2DecModel(hf_model_name=str(TINY))
    model.checkpoint = open_checkpoint(TINY)
    model.checkpoint.config = HFConfig(first, "config.json")
    with pytest.raises(ConfigError, match="another architecture with the same model_type chatglm"):
        model.build_graph()


def test_settings_of_the_published_configs() -> None:
    settings = Settings.of(HFConfig(HUB_6B))
    assert (settings.head_dim, settings.rotary_dim, settings.num_groups, settings.interleaved) == (128, 64, 2, True)
    assert (settings.eps, settings.qkv_bias, settings.dense_bias, settings.max_positions) == (1e-5, True, False, 32768)
    long = Settings.of(HFConfig({**HUB_6B, "rope_ratio": 50, "_name_or_path": "THUDM/chatglm3-6b-32k"}))
    assert long.rope == {"rope_type": "default", "rope_theta": 500000.0}
    glm = Settings.of(HFConfig(GlmConfig().to_dict()))
    assert (glm.eps, glm.rotary_dim, glm.num_groups, glm.qkv_bias) == (1.5625e-07, 64, 2, True)
    with pytest.raises(ConfigError, match="3 of a head's 6 columns would be rotated; expected an even number"):
        Settings.of(HFConfig({**HUB_6B, "kv_channels": 6}))


def test_the_bare_model_and_its_buffers(tmp_path: Path) -> None:
    model = write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file({**bare, "rotary_pos_emb.inv_freq": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(poptransformer.load(tmp_path).logits(IDS)[0], logits(model), atol=1e-4, rtol=0)


def test_a_bare_glm(tmp_path: Path) -> None:
    model = scaled(BY_NAME["glm-mqa-tied"].make())
    model.base_model.save_pretrained(tmp_path)
    np.testing.assert_allclose(poptransformer.load(tmp_path).logits(IDS)[0], logits(model), atol=1e-4, rtol=0)


def test_rotated_halves(tmp_path: Path) -> None:
    """`original_rope: false` pairs column i with i + rotary_dim/2: the same with the columns of each head reordered."""
    model = write(tmp_path, "chatglm2-no-groups")
    expected, config = logits(model), model.config
    rotary = config.head_dim // 2
    order = [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, config.head_dim)]
    tensors = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        if "query_key_value" in name:
            heads = tensor.unflatten(0, (config.num_attention_heads, 3, config.head_dim)).clone()
            heads[:, :2] = heads[:, :2][:, :, order]
            tensors[name] = heads.flatten(0, 2)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    changed(tmp_path, original_rope=False)
    np.testing.assert_allclose(poptransformer.load(tmp_path).logits(IDS)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_rows(bits: int, tmp_path: Path) -> None:
    """chatglm2-6b-int4: matrices of the blocks as int8 with a scale for each row."""
    model = write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    exact = dict(tensors)
    for name in [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]:
        largest = 2 ** (bits - 1) - 1
        scale = (tensors[name].abs().amax(1) / largest).half()
        codes = (tensors[name] / scale.float()[:, None]).round().clamp(-largest, largest).to(torch.int8)
        exact[name] = codes.float() * scale.float()[:, None]
        if bits == 4:
            codes = ((codes[:, 0::2] << 4) | (codes[:, 1::2] & 15)).contiguous()
        tensors |= {name: codes, f"{name}_scale": scale}
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    for folder, content in ((packed, tensors), (plain, exact)):
        folder.mkdir()
        shutil.copy(tmp_path / "config.json", folder)
        save_file(content, folder / "model.safetensors", {"format": "pt"})
    changed(packed, quantization_bit=bits)
    expected = poptransformer.load(plain).logits(IDS)[0]
    assert np.abs(expected - logits(model)).max() > 1e-3
    np.testing.assert_allclose(poptransformer.load(packed).logits(IDS)[0], expected, atol=1e-4, rtol=0)
    stored = poptransformer.load(packed, precision=f"int{bits}").quantization_report
    assert any("query_key_value" in weight.name and f"int{bits}" in weight.stored for weight in stored.packed)


def test_random_weights(tmp_path: Path) -> None:
    for index, config in enumerate((json.loads((TINY / "config.json").read_text()), GlmConfig().to_dict())):
        sizes = {"hidden_size": 32, "num_layers": 1, "ffn_hidden_size": 40, "padded_vocab_size": 50}
        sizes |= {"num_hidden_layers": 1, "intermediate_size": 40, "vocab_size": 50, "head_dim": 8}
        path = tmp_path / f"{index}.json"
        path.write_text(json.dumps({**config, **sizes, "num_attention_heads": 4, "kv_channels": 8}))
        with use_build(Build()):
            model = ChatGLM2DecModel(override_hfconfig_from_json=str(path), max_length=32)
        model.build_graph()
        assert model.graph.ir_graph.outputs[0].shape[2] == 50


def test_wrong_checkpoints(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.encoder.layers.1.self_attention.query_key_value.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingWeightError, match=r"layers\.1\.self_attention\.query_key_value"):
        poptransformer.load(tmp_path)
    changed(tmp_path, pre_seq_len=8)
    with pytest.raises(ConfigError, match="tuned with a prefix of 8"):
        poptransformer.load(tmp_path)


def test_the_small_model_writes_english() -> None:
    """The committed checkpoint: its loss is what its README says it is, within what other sentences make of it."""
    engine = poptransformer.load(TINY)
    text = "She was very much pleased with the prospect of it, and could not help thinking of her sister."
    ids = engine.tokenizer.encode(text)
    scores = torch.from_numpy(engine.logits(ids)[0, 1:-1])  # "sop" is not what it predicts
    assert torch.nn.functional.cross_entropy(scores, torch.tensor(ids[2:])) < 3.6
    answer = engine.chat([{"role": "user", "content": "Are you not happy here?"}], max_new_tokens=40, stop="\n")
    assert len(answer.split()) > 4 and answer.isascii()


def test_glm_and_chatglm2_are_one_function(tmp_path: Path) -> None:
    """The same weights, saved in both layouts."""
    (tmp_path / "hub").mkdir()
    model = write(tmp_path / "hub")
    assert isinstance(model, GlmForCausalLM)
    model.save_pretrained(tmp_path / "glm")
    hub, glm = (poptransformer.load(tmp_path / name).logits(IDS) for name in ("hub", "glm"))
    np.testing.assert_allclose(hub, glm, atol=1e-5, rtol=0)
