# SPDX-License-Identifier: Apache-2.0
"""Rendering a checkpoint's chat template.

A template is a program written by a stranger. It runs in jinja2's immutable sandbox and sees plain data only,
with the filters and functions that transformers gives templates, so that it renders the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from poptransformer.checkpoint.errors import TokenizerError


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """Render a conversation.

    Args:
        template: The template's source.
        messages: The turns, each with `role` and `content`.
        add_generation_prompt: Whether to end with the header of an assistant's turn.
        variables: Further variables: the special tokens, and whatever the template asks for.

    Raises:
        TokenizerError: If the messages are malformed, or the template does not compile or refuses them.
    """
    from jinja2 import TemplateError

    is_list = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not is_list or not messages or not all(isinstance(turn, Mapping) for turn in messages):
        raise TokenizerError(
            'expected a non-empty list of messages like {"role": "user", "content": "Hello"}, '
            f"found {str(messages)[:100]!r}"
        )
    # Templates test keys for presence, so a value of None must look absent.
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    try:
        return _compile(template).render(
            **_plain_data({"tools": None, "documents": None, **variables}),
            messages=_plain_data(turns),
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            f"the chat template failed: {error}; check the roles and the order of the messages"
        ) from error


def _plain_data(value: Any) -> Any:
    """Copy JSON-like data; anything with methods of its own stays outside the sandbox."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {_plain_data(key): _plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(item) for item in value]
    raise TokenizerError(
        f"a chat message holds a {type(value).__name__}; expected strings, numbers, lists and dictionaries"
    )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


@lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """Compile a template in a sandbox."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """Accepts `{% generation %}`, which marks an assistant's words for training; it adds no text."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)
