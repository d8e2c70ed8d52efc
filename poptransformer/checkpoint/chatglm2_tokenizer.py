# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of ChatGLM2-6B and ChatGLM3-6B: a SentencePiece model, and control tokens counted on from its pieces.

Their checkpoints bring it as Python code (`tokenization_chatglm.py`), which is not run. Control tokens are no text: a
prompt that spells one out is tokenized as words. Only what a chat template writes, that is text encoded without
`add_special_tokens`, may begin with `[gMASK]sop` and hold ChatGLM3's roles.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.files import write_bytes, write_json
from poptransformer.checkpoint.sentencepiece_model import SentencePieceModel, read_sentencepiece
from poptransformer.checkpoint.tokenizer import Tokenizer, TokenizerSettings
from poptransformer.checkpoint.tokenizer_parts import CHATGLM2_CLASS, CHATGLM2_FILE

_PREFIX = ("[gMASK]", "sop")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")  # ChatGLM3's; ChatGLM2 leaves these ids unused
_CONTROL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *_ROLES)
_ENDS_OF_ANSWERS = ("<|user|>", "<|observation|>")  # what ChatGLM3 writes where another would speak
_WRITTEN = re.compile(rf"(\A\[gMASK\]sop|{'|'.join(map(re.escape, _ROLES))})")

# `build_prompt` of modeling_chatglm.py: numbered rounds of a question and an answer.
CHAT_TEMPLATE = """\
[gMASK]sop{% set round = namespace(number=1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[Round ' ~ round.number ~ ']\\n\\n问：' ~ message.content ~ '\\n\\n答：' }}
    {%- elif message.role == 'assistant' %}
        {{- message.content | trim ~ '\\n\\n' }}
        {%- set round.number = round.number + 1 %}
    {%- else %}
        {{- raise_exception('ChatGLM2 knows the roles user and assistant; put instructions into the first question') }}
    {%- endif %}
{%- endfor %}"""


class ChatGLM2Backend:
    """Text to ids and back.

    Args:
        model: The SentencePiece model.
        data: The bytes of its file, to save it again.
    """

    def __init__(self, model: SentencePieceModel, data: bytes) -> None:
        self._model = model
        self._data = data

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Ids of all tokens."""
        first = len(self._model.pieces)
        control = {token: first + index for index, token in enumerate(_CONTROL)}
        return {piece: index for index, piece in enumerate(self._model.pieces)} | control

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        """All tokens by id."""
        return (*self._model.pieces, *_CONTROL)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text; without `add_special_tokens` it is what a chat template wrote."""
        if add_special_tokens:
            return [*map(self._ids.__getitem__, _PREFIX), *self._model.encode(text)]
        ids: list[int] = []
        for part in _WRITTEN.split(text):
            if part == "".join(_PREFIX):
                ids += map(self._ids.__getitem__, _PREFIX)
            elif part in _ROLES:
                ids.append(self._ids[part])
            else:
                ids += self._model.encode(part)
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return the text of ids; the embedding has more rows than there are tokens, and those are left out."""
        special, known = self.special_ids(), [index for index in ids if 0 <= index < self.size()]
        if skip_special_tokens:
            return self._model.decode([index for index in known if index not in special])
        runs = itertools.groupby(known, key=special.__contains__)
        return "".join(
            "".join(self._tokens[index] for index in run) if is_special else self._model.decode(list(run))
            for is_special, run in runs
        )

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None."""
        return self._tokens[token_id] if 0 <= token_id < self.size() else None

    def bytes_of(self) -> None:
        """Return None: SentencePiece takes a text's leading space away."""

    def special_ids(self) -> set[int]:
        """Return the ids that `skip_special_tokens` leaves out."""
        return {*self._model.control_ids, *range(len(self._model.pieces), self.size())}

    def size(self) -> int:
        """Return the number of tokens, control tokens included."""
        return len(self._model.pieces) + len(_CONTROL)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the files of the hub's checkpoint, without its code."""
        write_bytes(folder / CHATGLM2_FILE, self._data)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": CHATGLM2_CLASS, **config})


def load_chatglm2_tokenizer(folder: Path, chat_template: str | None, stop_token_ids: tuple[int, ...]) -> Tokenizer:
    """Load the tokenizer of a folder whose `tokenizer.model` is ChatGLM2's.

    Args:
        folder: The folder.
        chat_template: Source of the chat template; None for ChatGLM2's rounds.
        stop_token_ids: Ids that end a generation besides those that the tokenizer knows.

    Raises:
        TokenizerError: If it cannot be read.
    """
    path = folder / CHATGLM2_FILE
    model = read_sentencepiece(path)
    backend = ChatGLM2Backend(model, path.read_bytes())
    roles = {"bos_token": model.bos_id, "eos_token": model.eos_id, "unk_token": model.unk_id, "pad_token": model.unk_id}
    ends = [index for token in _ENDS_OF_ANSWERS if (index := backend.token_to_id(token)) is not None]
    settings = TokenizerSettings(
        special_tokens={role: model.pieces[index] for role, index in roles.items() if index is not None},
        chat_template=CHAT_TEMPLATE if chat_template is None else chat_template,
        stop_token_ids=tuple(dict.fromkeys((*stop_token_ids, *ends))),
        source=str(folder),
    )
    return Tokenizer(backend, settings)
