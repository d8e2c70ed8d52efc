# SPDX-License-Identifier: Apache-2.0
"""ChatGLM-6B's tokenizer, on small SentencePiece models with the special pieces of `ice_text.model`."""

from __future__ import annotations

import functools
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from checkpoint_files import TEXTS

from poptransformer.checkpoint import CorruptCheckpointError, Tokenizer, TokenizerError
from poptransformer.checkpoint.folder_tokenizer import load_folder_tokenizer

pytestmark = pytest.mark.unit

CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
MARKERS = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]
# The hub's file, revision of April 2023.
CONFIG = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "num_image_tokens": 0,
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
SAMPLES = [
    *TEXTS,
    "你好，世界",
    "def f(x):\n    return x\t# two\n\n",
    "a" + " " * 85 + "b" + " " * 161 + "c",
    " leading and trailing ",
    "[Round 0]\n问：hi\n答：",
    "🙂 ünï",
]


@functools.cache
def model(kind: str, control: tuple[str, ...] = tuple(CONTROL)) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS * 5, "你好世界问答"]),
        model_writer=writer,
        model_type=kind,
        vocab_size=700,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=3,
        control_symbols=list(control),
        user_defined_symbols=MARKERS,
        minloglevel=2,
    )
    return writer.getvalue()


def make_folder(folder: Path, kind: str = "bpe", **changes: Any) -> Path:
    (folder / "ice_text.model").write_bytes(model(kind))
    (folder / "tokenizer_config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def load(folder: Path) -> Tokenizer:
    return load_folder_tokenizer(folder, {"model_type": "chatglm"}, ())


class Published:
    """What the published class does, step by step."""

    def __init__(self, kind: str, offset: int) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model(kind))
        self.offset = offset

    def encode(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for length in range(80, 1, -1):
            text = text.replace(" " * length, f"<|blank_{length}|>")
        ids = [*self.model.EncodeAsIds(text), self.model.PieceToId("[gMASK]"), self.model.PieceToId("<sop>")]
        return [i + self.offset for i in ids]

    def decode(self, ids: list[int]) -> str:
        text = self.model.DecodeIds([i - self.offset for i in ids if i >= self.offset])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for length in range(2, 81):
            text = text.replace(f"<|blank_{length}|>", " " * length)
        return text


@pytest.mark.parametrize("offset", [0, 20000])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_equals_the_published_class(kind: str, offset: int, tmp_path: Path) -> None:
    ours, published = load(make_folder(tmp_path, kind, num_image_tokens=offset)), Published(kind, offset)
    for text in SAMPLES:
        ids = ours.encode(text)
        assert ids == published.encode(text), text
        assert ours.encode(text, add_special_tokens=False) == ids[:-2]
        assert ours.decode(ids) == published.decode(ids[:-2]), text
    assert ours.decode(ours.encode(SAMPLES[-4])) == SAMPLES[-4]
    names = {"bos": "<sop>", "eos": "<eop>", "pad": "<pad>"}
    for role, name in names.items():
        assert getattr(ours, f"{role}_token_id") == published.model.PieceToId(name) + offset
    assert ours.stop_token_ids == (ours.eos_token_id,)
    assert ours.vocab_size == published.model.vocab_size() + offset


def test_the_first_revision_names_no_number_of_image_tokens(tmp_path: Path) -> None:
    make_folder(tmp_path)
    given = {key: value for key, value in CONFIG.items() if key != "num_image_tokens"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given))
    assert load(tmp_path).encode("Hi") == Published("bpe", 20000).encode("Hi")


def test_ids_without_text(tmp_path: Path) -> None:
    """Image tokens, control pieces and the rows that the embedding has beyond the vocabulary."""
    ours = load(make_folder(tmp_path, num_image_tokens=100))
    hi = ours.encode("Hi", add_special_tokens=False)
    assert ours.decode([5, *hi, ours.vocab_size + 3, ours.bos_token_id, 99]) == "Hi"
    assert ours.backend.id_to_token(99) is None and ours.backend.token_to_id("no such piece") is None
    assert ours.backend.token_to_id("<unk>") == 100


@pytest.mark.parametrize("text", SAMPLES)
def test_a_stream_is_the_text(text: str, tmp_path: Path) -> None:
    ours = load(make_folder(tmp_path))
    stream, ids = ours.stream(), ours.encode(text)
    assert "".join([*map(stream.put, ids), stream.flush()]) == ours.decode(ids)


def test_special_tokens_that_are_written_out(tmp_path: Path) -> None:
    ours = load(make_folder(tmp_path))
    assert ours.encode("Hi[gMASK]<sop>", add_special_tokens=False) == ours.encode("Hi")


def test_a_conversation(tmp_path: Path) -> None:
    ours = load(make_folder(tmp_path))
    said = ["One?", "Two.", "Three?", "Four.", "Five?"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    assert ours.apply_chat_template(messages[:1]) == "One?[gMASK]<sop>"
    text = "[Round 0]\n问：One?\n答：Two.\n[Round 1]\n问：Three?\n答：Four.\n[Round 2]\n问：Five?\n答："
    assert ours.apply_chat_template(messages) == text + "[gMASK]<sop>"
    assert ours.encode(ours.apply_chat_template(messages), add_special_tokens=False) == ours.encode(text)
    assert ours.apply_chat_template(messages[:2], add_generation_prompt=False) == "[Round 0]\n问：One?\n答：Two.\n"
    system = {"role": "system", "content": "Be brief."}
    for wrong in (messages[:2], [messages[0], messages[2], messages[4]], [system, *messages[:2]], [system]):
        with pytest.raises(TokenizerError, match="must take turns, and the user must begin and ask last"):
            ours.apply_chat_template(wrong)
    own = load(make_folder(tmp_path, chat_template="{{ messages[0].content }}!"))
    assert own.apply_chat_template(messages) == "One?!"


def test_saved_and_loaded(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    ours = load(make_folder(tmp_path, num_image_tokens=7, do_lower_case=True, remove_space=True))
    assert ours.encode("  HI  there ") == ours.encode("hi there") == Published("bpe", 7).encode("hi there")
    ours.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert [again.encode(text) for text in SAMPLES] == [ours.encode(text) for text in SAMPLES]
    assert again.chat_template == ours.chat_template


@pytest.mark.parametrize("data", [b"", b"no model", model("bpe")[:5000]], ids=["empty", "text", "cut"])
def test_a_damaged_model(data: bytes, tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "ice_text.model").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"ice_text\.model (is not a SentencePiece model|has no piece)"):
        load(tmp_path)


def test_a_model_without_the_special_pieces(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "ice_text.model").write_bytes(model("bpe", ("<sop>", "<eop>", "[MASK]")))
    with pytest.raises(CorruptCheckpointError, match=r"has no piece \[gMASK\]; files older than April 2023"):
        load(tmp_path)


@pytest.mark.parametrize("offset", [-1, True, "many", 1.5])
def test_a_wrong_number_of_image_tokens(offset: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="num_image_tokens in .* expected a number of 0 or more"):
        load(make_folder(tmp_path, num_image_tokens=offset))


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match=r"needs the sentencepiece package; run `pip install sentencepiece`"):
        load(make_folder(tmp_path))
