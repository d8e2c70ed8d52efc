# SPDX-License-Identifier: Apache-2.0
"""ChatGLM2's tokenizer: ids of small models as sentencepiece 0.2.3 gives them, control tokens, prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentencepiece_files import sentencepiece_model

from poptransformer.checkpoint import Tokenizer, TokenizerError
from poptransformer.checkpoint.folder_tokenizer import load_folder_tokenizer
from poptransformer.checkpoint.sentencepiece_model import read_sentencepiece

pytestmark = pytest.mark.unit

PIECES = 312
GMASK, SOP, USER = PIECES + 1, PIECES + 3, PIECES + 6
ROUND = "[Round 1]\n\n问：你好\n\n答："
# fmt: off
ROUND_IDS = [270, 299, 269, 275, 304, 307, 13, 13, 236, 154, 177, 242, 191, 157, 273, 13, 13, 311, 242, 191, 157]
CASES = [
    ({}, "philosophy sop", [263, 262, 259, 289, 283, 297, 275, 259, 289]),
    ({}, ROUND, ROUND_IDS),
    ({}, " two  spaces ", [271, 293, 295, 288, 275, 266, 289, 276, 278, 280, 292, 275]),
    ({}, "<s>é😀</s>", [275, 308, 292, 309, 198, 172, 243, 162, 155, 131, 308, 310, 292, 309]),
    ({}, "x ▁y", [275, 296, 271, 297]),
    ({}, "", []),
    ({}, "好你", [275, 232, 168, 192, 231, 192, 163]),
    ({"add_dummy_prefix": False}, " two  spaces ", [272, 295, 288, 275, 266, 289, 276, 278, 280, 292, 275]),
    ({"remove_extra_whitespaces": True}, " two  spaces ", [272, 295, 288, 266, 289, 276, 278, 280, 292]),
    ({"remove_extra_whitespaces": True}, "x ▁y", [275, 296, 271, 297]),
    ({"user_defined": ("[Round",)}, "[Round 1]", [276, 259, 276, 305, 308]),
    ({"bytes": False}, ROUND, [14, 43, 13, 19, 48, 51, 0, 17, 0, 55, 0]),
]
# fmt: on
BROKEN = {
    "no protobuf": (b"not a sentencepiece model", "is not a SentencePiece model"),
    "cut off": (sentencepiece_model()[:-40], "is not a SentencePiece model"),
    "empty": (b"", "0 pieces; expected kind 2"),
    "unigram": (sentencepiece_model(model_type="UNIGRAM"), "of kind 1 with .*; expected kind 2"),
    "a piece twice": (sentencepiece_model(user_defined=("so",)), "lists a piece twice"),
}


def write(folder: Path, model: bytes | None = None, **config: Any) -> Path:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model() if model is None else model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer", **config}))
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    auto_map = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    (tmp_path / "tokenization_chatglm.py").write_text("raise SystemExit('this must not be run')")
    return load_folder_tokenizer(write(tmp_path, auto_map=auto_map), {"model_type": "chatglm"}, (2,))


@pytest.mark.parametrize(("options", "text", "ids"), CASES)
def test_ids_are_those_of_sentencepiece(options: dict[str, Any], text: str, ids: list[int], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(**options))
    model = read_sentencepiece(path)
    assert model.encode(text) == ids
    if not options:
        assert model.decode(ids) == text.replace("▁", " ")


def test_a_text_follows_two_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(ROUND) == [GMASK, SOP, *ROUND_IDS]
    assert [tokenizer.backend.token_to_id(token) for token in ("[MASK]", "[gMASK]", "sop", "eop", "<|user|>")] == [
        *(PIECES, GMASK, SOP, SOP + 1, USER)
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert set(tokenizer.stop_token_ids) == {2, USER, USER + 2}
    assert tokenizer.vocab_size == PIECES + 9


def test_control_tokens_in_a_text_are_words(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("[gMASK]sop philosophy<|user|></s>")[2:]
    assert not set(words) & {*range(PIECES, PIECES + 9), 0, 1, 2}
    assert tokenizer.decode(words) == "[gMASK]sop philosophy<|user|></s>"


def test_decoding(tokenizer: Tokenizer) -> None:
    ids = [GMASK, SOP, *ROUND_IDS, 2, 500, -1]
    assert tokenizer.decode(ids) == ROUND
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"[gMASK]sop{ROUND}</s>"
    stream = tokenizer.stream()
    assert "".join([*map(stream.put, ids[:-1]), stream.flush()]) == ROUND


def test_conversations_are_numbered_rounds(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": " 你好\n"},
        {"role": "user", "content": "sop"},
    ]
    text = tokenizer.apply_chat_template(messages)
    assert text == "[gMASK]sop[Round 1]\n\n问：hi\n\n答：你好\n\n[Round 2]\n\n问：sop\n\n答："
    assert tokenizer.encode(text, add_special_tokens=False) == tokenizer.encode(text.removeprefix("[gMASK]sop"))
    with pytest.raises(TokenizerError, match="roles user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}])


def test_chatglm3_writes_roles_by_its_template(tmp_path: Path) -> None:
    template = "[gMASK]sop{% for m in messages %}<|{{ m.role }}|>\n {{ m.content }}{% endfor %}<|assistant|>"
    tokenizer = load_folder_tokenizer(write(tmp_path, chat_template=template), {}, ())
    text = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}])
    ids = tokenizer.encode(text, add_special_tokens=False)
    # The hub's ids of this conversation have the same form: 64790 64792 64795 30910 13 ... 64796.
    assert ids == [GMASK, SOP, USER, *tokenizer.encode("\n 你好")[2:], USER + 1]


def test_saved_and_reloaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    again = load_folder_tokenizer(tmp_path / "saved", {"model_type": "chatglm"}, (2,))
    assert again.encode(ROUND) == tokenizer.encode(ROUND)
    assert (again.settings.special_tokens, again.chat_template) == (
        tokenizer.settings.special_tokens,
        tokenizer.chat_template,
    )
    assert again.stop_token_ids == tokenizer.stop_token_ids


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    model, message = BROKEN[name]
    with pytest.raises(TokenizerError, match=message):
        load_folder_tokenizer(write(tmp_path, model), {}, ())


def test_neither_sentencepiece_nor_torch_is_imported(tmp_path: Path) -> None:
    write(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from poptransformer.checkpoint.folder_tokenizer import load_folder_tokenizer\n"
        f"load_folder_tokenizer(Path({str(tmp_path)!r}), {{}}, ()).encode('hi')\n"
        "assert not {'torch', 'sentencepiece'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
