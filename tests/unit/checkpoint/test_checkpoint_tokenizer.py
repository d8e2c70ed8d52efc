# SPDX-License-Identifier: Apache-2.0
"""Tokenizers in Hugging Face layout, against transformers' own."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import TEXTS, train_tokenizer

from poptransformer.checkpoint import CorruptCheckpointError, Tokenizer, TokenizerError
from poptransformer.checkpoint.folder_tokenizer import load_folder_tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.unit

TRAINED = {kind: train_tokenizer(kind) for kind in ("bytes", "spm", "words")}
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def make_folder(folder: Path, kind: str, config: dict[str, Any], model_type: str = "llama") -> Path:
    TRAINED[kind].save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def load(folder: Path, model_type: str = "llama") -> Tokenizer:
    return load_folder_tokenizer(folder, {"model_type": model_type}, ())


def add_bos(folder: Path) -> None:
    """Make a tokenizer.json put a BOS before each text, as published Llama vocabularies do."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import processors

    inner = Inner.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.enable_truncation(3)
    inner.enable_padding(length=40, pad_id=2, pad_token="</s>")
    inner.save(str(folder / "tokenizer.json"))


def compare(ours: Tokenizer, theirs: Any) -> None:
    for text in (*TEXTS, "<s>hi</s> there", "a b ! it 's , n't"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text
    assert ours.vocab_size == len(theirs)
    for role in ("bos", "eos", "pad"):
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id"), role


FAST = {"tokenizer_class": "PreTrainedTokenizerFast", **ROLES}
LLAMA = {"tokenizer_class": "LlamaTokenizer", **ROLES}
PLAIN_TOKEN = dict.fromkeys(("special", "normalized", "lstrip", "rstrip", "single_word"), False)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bytes", FAST),
    "bos and eos, which tokenizer.json does not have": (
        "bytes",
        {**FAST, "add_bos_token": True, "add_eos_token": True},
    ),
    "cleans up, but is BPE": ("bytes", {**FAST, "clean_up_tokenization_spaces": True}),
    "tokens as objects": (
        "bytes",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            "pad_token": "<pad>",
            "added_tokens_decoder": {
                "600": {**PLAIN_TOKEN, "content": "<pad>", "special": True},
                "601": {**PLAIN_TOKEN, "content": "fox"},
            },
            "extra_special_tokens": ["<|im_end|>", "<|im_start|>"],
        },
    ),
    "gpt2 class": ("bytes", {"tokenizer_class": "GPT2Tokenizer", **ROLES}),
    "llama": ("spm", {**LLAMA, "add_bos_token": True, "legacy": False}),
    "llama fast": ("spm", {**LLAMA, "tokenizer_class": "LlamaTokenizerFast"}),
    "llama legacy": ("spm", {**LLAMA, "legacy": True}),
    "llama without prefix": ("spm", {**LLAMA, "add_prefix_space": False}),
    "llama with defaults": ("spm", {"tokenizer_class": "LlamaTokenizer"}),
    "no class": ("spm", {}),
    "words": ("words", FAST),
    "words cleaned up": ("words", {**FAST, "clean_up_tokenization_spaces": True}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_transformers(tmp_path: Path, name: str) -> None:
    kind, config = CONFIGS[name]
    folder = make_folder(tmp_path, kind, config)
    compare(load(folder), transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("name", ["plain", "llama", "llama with defaults"])
def test_bos_padding_and_truncation_in_tokenizer_json(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path, *CONFIGS[name])
    add_bos(folder)
    ours = load(folder)
    compare(ours, transformers.AutoTokenizer.from_pretrained(folder))
    assert ours.encode("the fox")[0] == 1 and ours.encode("the fox", add_special_tokens=False)[0] != 1


@pytest.mark.parametrize("name", CONFIGS)
def test_stream_adds_up_to_decode(tmp_path: Path, name: str) -> None:
    kind, config = CONFIGS[name]
    ours = load(make_folder(tmp_path, kind, config))
    rng = random.Random(0)
    for trial in range(120):
        top = ours.vocab_size if trial % 2 else 290  # the low ids are the bytes
        ids = [rng.randrange(top) for _ in range(rng.randrange(1, 50))]
        for skip in (False, True):
            stream = ours.stream(skip)
            assert "".join([*map(stream.put, ids), stream.flush()]) == ours.decode(ids, skip)


@pytest.mark.parametrize("kind", ["bytes", "spm"])
def test_stream_is_prompt_and_never_splits_a_character(tmp_path: Path, kind: str) -> None:
    ours = load(make_folder(tmp_path, kind, {**ROLES}))
    text = "the quick 😀 brown 龘 fox, naïve café"
    stream = ours.stream()
    pieces = [stream.put(token_id) for token_id in ours.encode(text, add_special_tokens=False)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text and stream.flush() == ""
    # Only the bytes of a character that takes several tokens are held back, so most steps print something.
    assert sum(map(bool, pieces)) > len(pieces) / 2


def test_stream_shows_half_a_character_only_at_the_end(tmp_path: Path) -> None:
    ours = load(make_folder(tmp_path, "bytes", ROLES))
    ids = ours.encode("龘")
    stream = ours.stream()
    assert [stream.put(token_id) for token_id in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "\ufffd"
    assert stream.put(ours.encode("a")[0]) == "a"


def test_gpt2_files(tmp_path: Path) -> None:
    TRAINED["bytes"].model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    ours = load(tmp_path, "gpt2")
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        assert ours.encode(text) == TRAINED["bytes"].encode(text).ids
    assert ours.eos_token_id is None  # this vocabulary has no <|endoftext|>
    (tmp_path / "merges.txt").write_text("no such merge")
    with pytest.raises(CorruptCheckpointError, match=r"vocab\.json and merges\.txt do not make a tokenizer"):
        load(tmp_path, "gpt2")


def test_class_defaults_fill_roles_the_vocabulary_has(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "spm", {"tokenizer_class": "LlamaTokenizer"})
    ours = load(folder)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, None)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": null}')
    assert load(folder).bos_token_id is None and load(folder).eos_token_id == 2
    (folder / "tokenizer_config.json").write_text("{}")
    assert load(folder).eos_token_id is None


def test_stop_ids(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "bytes", ROLES)
    assert load_folder_tokenizer(folder, {}, (7, 2)).stop_token_ids == (2, 7)
    (folder / "tokenizer_config.json").write_text("{}")
    assert load_folder_tokenizer(folder, {}, ()).stop_token_ids == ()


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_tokenizers_read_the_same(tmp_path: Path, name: str) -> None:
    kind, config = CONFIGS[name]
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    ours = load(make_folder(tmp_path / "from", kind, {**config, "chat_template": "{{ messages[0].content }}"}))
    ours.save(tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    (tmp_path / "to" / "config.json").write_text('{"model_type": "llama"}')
    again = load(tmp_path / "to")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    compare(again, theirs)
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text)
        assert again.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert again.settings.special_tokens == ours.settings.special_tokens
    assert again.chat_template == ours.chat_template


@pytest.mark.parametrize(
    ("tokens", "merges", "stays"),
    [
        ("abc", [("a", "b"), ("ab", "c")], False),
        ("abc ", [("a", " "), ("a ", "b")], True),  # "a   b" has more than one way to be cut
        ("#version ", [("#", "v"), ("#v", "e")], False),
        (["#version:", "x"], [("#version:", "x")], True),  # the library takes that for a comment
        ("abc", [], False),
    ],
)
def test_merges_are_saved_as_texts_where_that_says_the_same(
    tokens: Any, merges: list[tuple[str, str]], stays: bool, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers import models

    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, *("".join(pair) for pair in merges)]))}
    inner = Inner(models.BPE(vocab=vocabulary, merges=merges))
    inner.save(str(tmp_path / "tokenizer.json"))
    load(tmp_path).save(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert found == [list(pair) if stays else " ".join(pair) for pair in merges]
    assert Inner.from_file(str(tmp_path / "tokenizer.json")).to_str() == inner.to_str()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{}", "not a valid tokenizer"),
        ("tokenizer.json", "", "not a valid tokenizer"),
        ("tokenizer_config.json", "[]", "expected an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "do not fit together"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"1": {"content": "a", "single_word": "perhaps"}}}',
            "do not fit together",
        ),
        ("special_tokens_map.json", "{", "not valid JSON"),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = make_folder(tmp_path, "bytes", ROLES)
    (folder / file).write_text(content)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_a_layout_nothing_can_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(TokenizerError, match=r"cannot load the tokenizer of .*Put a tokenizer\.json there"):
        load(tmp_path)


def test_sentencepiece_files_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a sentencepiece model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model needs .*pip install sentencepiece"):
        load(tmp_path)


def test_text_must_be_text(tmp_path: Path) -> None:
    ours = load(make_folder(tmp_path, "bytes", ROLES))
    with pytest.raises(TokenizerError, match="expected a string to tokenize, found list"):
        ours.encode(["a"])  # type: ignore[arg-type]


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "bytes", {**ROLES, "chat_template": "{{ messages[0].content }}"})
    code = (
        "import sys\n"
        "from poptransformer.checkpoint.folder_tokenizer import load_folder_tokenizer\n"
        "from pathlib import Path\n"
        f"t = load_folder_tokenizer(Path({str(folder)!r}), {{}}, ())\n"
        "t.decode(t.encode(t.apply_chat_template([{'role': 'user', 'content': 'hi'}])))\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
