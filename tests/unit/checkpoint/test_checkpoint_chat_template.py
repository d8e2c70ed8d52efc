# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import train_tokenizer

from poptransformer.checkpoint import TokenizerError
from poptransformer.checkpoint.chat_template import render_chat_template
from poptransformer.checkpoint.folder_tokenizer import load_folder_tokenizer

pytestmark = pytest.mark.unit

CHAT = [
    {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
    {"role": "user", "content": "hi", "name": None},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "日本"},
]


def render(template: str, messages: Any = CHAT, prompt: bool = True, **variables: Any) -> str:
    return render_chat_template(template, messages, add_generation_prompt=prompt, variables=variables)


TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "json, loop controls, namespace": (
        "{{ bos_token }}{% set ns = namespace(n=0) %}\n"
        "    {% for m in messages %}\n"
        "      {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "      {% set ns.n = ns.n + 1 %}{{ m | tojson(indent=2) }}{{ m.name is defined }}\n"
        "    {% endfor %}{{ ns.n }}{{ tools is none }}"
    ),
    "generation block": (
        "{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}[{{ m.content | trim }}]{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_equal_to_transformers(name: str, prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=train_tokenizer("bytes"), bos_token="<s>")
    expected = theirs.apply_chat_template(
        CHAT, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt
    )
    assert render(TEMPLATES[name], prompt=prompt, bos_token="<s>") == expected


def test_a_template_can_refuse() -> None:
    with pytest.raises(TokenizerError, match="the chat template failed: roles must alternate; check the roles"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}{{ raise_exception('reached: ' ~ ''.__class__) }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include 'x' %}",
        "{% for %}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
    ],
)
def test_nothing_leaves_the_sandbox(template: str) -> None:
    with pytest.raises(TokenizerError, match="the chat template failed"):
        render(template)


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "a", "extra": None}]
    render("{{ messages[0].content }}", messages)
    assert messages == [{"role": "user", "content": "a", "extra": None}]


@pytest.mark.parametrize("messages", [[], "hi", {"role": "user"}, [1], None])
def test_malformed_messages(messages: Any) -> None:
    with pytest.raises(TokenizerError, match="expected a non-empty list of messages"):
        render("x", messages)


def test_objects_stay_outside() -> None:
    with pytest.raises(TokenizerError, match="holds a PosixPath; expected strings"):
        render("x", [{"role": "user", "content": Path("/")}])


def test_where_templates_come_from(tmp_path: Path) -> None:
    train_tokenizer("bytes").save(str(tmp_path / "tokenizer.json"))

    def load() -> Any:
        return load_folder_tokenizer(tmp_path, {}, ())

    with pytest.raises(TokenizerError, match=f"{tmp_path} has no chat template; pass plain prompts"):
        load().apply_chat_template(CHAT)
    named = [
        {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D{{ bos_token }}{{ x }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "bos_token": "<s>"}))
    assert load().apply_chat_template(CHAT, x=3) == "D<s>3"
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert load().apply_chat_template(CHAT) == "own file"
