# SPDX-License-Identifier: Apache-2.0
"""Questions and conversations: what a chat model reads, and what it remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.checkpoint.chatglm_tokenizer import CHAT_TEMPLATE
from poptransformer.errors import ConfigError
from poptransformer.models import ChatGLMDecModel
from poptransformer.sessions import Session
from poptransformer.utils import turns
from tests.parity.chatglm_reference import ChatGLMReference, ChatGLMReferenceConfig
from tests.parity.conftest import scaled

SPECIAL = ("[MASK]", "[gMASK]", "<sop>", "<eop>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random ChatGLM whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("chat")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, *SPECIAL])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    ending = [(token, inner.token_to_id(token)) for token in SPECIAL[1:3]]
    inner.post_processor = processors.TemplateProcessing(single="$A [gMASK] <sop>", special_tokens=ending)
    roles = {"bos_token": "<sop>", "eos_token": "<eop>", "mask_token": "[MASK]", "pad_token": "<eop>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT_TEMPLATE, **roles).save_pretrained(folder)
    ids = {"mask_token_id": 256, "gmask_token_id": 257, "bos_token_id": 258, "eos_token_id": 259}
    scaled(ChatGLMReference(ChatGLMReferenceConfig(vocab_size=260, **ids))).save_pretrained(folder)
    return folder


def make_model(folder: Path, **settings: Any) -> ChatGLMDecModel:
    with use_build(Build()):
        return ChatGLMDecModel(hf_model_name=str(folder), max_length=256, **settings)


def prompt_of(model: ChatGLMDecModel, **inputs: Any) -> str:
    arrays = model.build_input_dict(**inputs)
    assert arrays["input_ids"].shape == (1, arrays["lengths"][0])
    return model.tokenizer.decode(arrays["input_ids"][0], skip_special_tokens=False)


def answer_of(model: ChatGLMDecModel, text: str) -> str:
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    anchors = {"output_ids": np.array([ids]), "output_lengths": np.array([len(ids)])}
    return model.build_output_dict(anchors)["output_strings"][0]


def test_a_question_stands_alone(folder: Path) -> None:
    model = make_model(folder)
    for _ in range(2):
        assert prompt_of(model, input_string="Who?", use_history=False) == "Who?[gMASK]<sop>"
        assert answer_of(model, " I. ") == "I."
    assert model.history == []


def test_a_conversation_remembers(folder: Path) -> None:
    model = make_model(folder)
    assert prompt_of(model, input_string="Who?", use_history=True) == "Who?[gMASK]<sop>"
    answer_of(model, " I. ")
    second = "[Round 0]\n问：Who?\n答：I.\n[Round 1]\n问：When?\n答：[gMASK]<sop>"
    assert prompt_of(model, input_string="When?", use_history=True) == second
    assert prompt_of(model, input_string="When?", use_history=True) == second, (
        "a question that was not answered is gone"
    )
    answer_of(model, "Now.")
    third = "[Round 0]\n问：Who?\n答：I.\n[Round 1]\n问：When?\n答：Now.\n[Round 2]\n问：Why?\n答：[gMASK]<sop>"
    assert prompt_of(model, input_string="Why?", use_history=True) == third
    assert prompt_of(model, input_string="Why?") == "Why?[gMASK]<sop>"
    assert [message["content"] for message in model.history] == ["Who?", "I.", "When?", "Now."]


def test_chinese_punctuation_becomes_full_width(folder: Path) -> None:
    model = make_model(folder)
    model.build_input_dict(input_string="?", use_history=True)
    assert (
        answer_of(model, "\n你好,世界!我很好; ok, a:b 好?[[训练时间]]:") == "你好，世界！我很好； ok, a:b 好？2023年："
    )
    assert model.history[1]["content"].startswith("你好，")


def test_prompts_as_elsewhere(folder: Path) -> None:
    model = make_model(folder)
    assert prompt_of(model, input_string_list=["It was"]) == "It was[gMASK]<sop>"
    assert prompt_of(model, input_string_list=["Who?"], chat=True, input_string=None) == "Who?[gMASK]<sop>"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs.input_string_list is empty"),
        ({"use_history": True}, "inputs.use_history is set without inputs.input_string"),
        ({"input_string": "Who?", "input_string_list": ["It was"]}, "inputs has both input_string, a question, and"),
        (
            {"input_string": "Who?", "colour": 3},
            r"Unknown inputs \['colour'\]; options: \['input_string', 'use_history",
        ),
        ({"input_string": "long " * 9}, "A prompt has 47 tokens, but model.input_length is 40"),
    ],
    ids=str,
)
def test_wrong_inputs(folder: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(folder, input_length=40).build_input_dict(**inputs)


@pytest.mark.parametrize("stream", [True, False])
def test_a_conversation_through_a_session(folder: Path, stream: bool) -> None:
    """Each answer is that of the Python API to the same messages."""
    session, model = Session(), make_model(folder, max_loop=6, early_stop=True)
    session.compile(model)
    for inputs in turns({"input_string": ["Who?", "When?", "Why?"], "use_history": True}):
        arrays = model.build_input_dict(**inputs)
        list(session.stream(arrays)) if stream else session.run(arrays)
        model.build_output_dict(session.anchor_arrays)
    engine = poptransformer.load(folder, max_length=256)
    questions, answers = model.history[::2], model.history[1::2]
    assert [message["content"] for message in questions] == ["Who?", "When?", "Why?"]
    for index, answer in enumerate(answers):
        assert model.polish(engine.chat(model.history[: 2 * index + 1], max_new_tokens=6)) == answer["content"]


def test_turns() -> None:
    alone = {"input_string": "Who?", "use_history": False}
    assert list(turns(alone)) == [alone]
    assert list(turns({"input_string_list": ["a", "b"]})) == [{"input_string_list": ["a", "b"]}]
    assert [turn["input_string"] for turn in turns({"input_string": ["Who?", "When?"]})] == ["Who?", "When?"]
