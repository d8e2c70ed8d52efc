# SPDX-License-Identifier: Apache-2.0
"""ChatGLM-6B's tokenizer: the SentencePiece model `ice_text.model`, and what its own class does around it.

Source: `tokenization_chatglm.py` of THUDM/chatglm-6b, which is code that comes with the checkpoint and is not run here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.errors import CorruptCheckpointError
from poptransformer.checkpoint.sentencepiece_backend import SentencePieceBackend, read_sentencepiece
from poptransformer.checkpoint.tokenizer import Tokenizer, TokenizerSettings, token_text
from poptransformer.checkpoint.tokenizer_parts import CHATGLM_FILE

_ROLES = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}
_GMASK = {"gmask_token": "[gMASK]"}
_IMAGE_TOKENS = 20000  # ids before the text's, where the config names no other number: the model of March 2023
_LONGEST_BLANK = 80
_SPACES = re.compile(" {2,}")
_BREAKS = {"<n>": "\n", "<|tab|>": "\t"}
_MARKERS = re.compile(r"<n>|<\|tab\|>|<\|blank_(\d\d?)\|>")

# `chat` of ChatGLM-6B: a lone question stands as it is, a conversation is numbered.
CHAT_TEMPLATE = """\
{%- if messages | length % 2 != add_generation_prompt | int -%}
{{- raise_exception('a user and the assistant must take turns, and the user must begin and ask last') -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role != ('assistant' if loop.index0 % 2 else 'user') -%}
{{- raise_exception('a user and the assistant must take turns, and the user must begin and ask last') -}}
{%- endif -%}
{%- if message.role == 'assistant' -%}
{{- message.content + '\\n' -}}
{%- elif messages | length == 1 -%}
{{- message.content -}}
{%- else -%}
{{- '[Round ' ~ loop.index0 // 2 ~ ']\\n问：' ~ message.content ~ '\\n答：' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[gMASK]<sop>' -}}{%- endif -%}
"""


def load_chatglm_tokenizer(folder: Path, given: Mapping[str, Any], stop_token_ids: tuple[int, ...]) -> Tokenizer:
    """Load the tokenizer of ChatGLM-6B.

    A text is followed by `[gMASK] <sop>`, after which the model writes.

    Args:
        folder: The checkpoint's folder, with `ice_text.model`.
        given: Its `tokenizer_config.json`.
        stop_token_ids: Ids that end a generation besides `<eop>`.

    Raises:
        TokenizerError: If the sentencepiece library is not installed.
        CorruptCheckpointError: If the model is damaged, or lacks a special token.
    """
    path = folder / CHATGLM_FILE
    model = read_sentencepiece(path)
    names = {role: token_text(given.get(role)) or default for role, default in (_ROLES | _GMASK).items()}
    offset = given.get("num_image_tokens", _IMAGE_TOKENS)
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise CorruptCheckpointError(f"num_image_tokens in {folder} is {offset!r}; expected a number of 0 or more")
    pieces = {name: model.piece_to_id(name) for name in names.values()}
    missing = [name for name, piece in pieces.items() if model.id_to_piece(piece) != name]
    if missing:
        raise CorruptCheckpointError(
            f"{path} has no piece {missing[0]}; files older than April 2023 lack it. Download the newest revision"
        )
    special = {name: piece + offset for name, piece in pieces.items()}
    backend = SentencePieceBackend(
        model,
        path,
        special=special,
        suffix=(special[names["gmask_token"]], special[names["bos_token"]]),
        offset=offset,
        before=lambda text: _to_markers(_normalised(text, given)),
        after=_from_markers,
        config={
            "tokenizer_class": "ChatGLMTokenizer",
            "num_image_tokens": offset,
            "gmask_token": names["gmask_token"],
            "do_lower_case": bool(given.get("do_lower_case")),
            "remove_space": bool(given.get("remove_space")),
        },
    )
    template = given.get("chat_template")
    settings = TokenizerSettings(
        special_tokens={role: names[role] for role in _ROLES},
        chat_template=template if isinstance(template, str) else CHAT_TEMPLATE,
        stop_token_ids=stop_token_ids,
        source=str(folder),
    )
    return Tokenizer(backend, settings)


def _normalised(text: str, given: Mapping[str, Any]) -> str:
    if given.get("remove_space"):
        text = " ".join(text.split())
    return text.lower() if given.get("do_lower_case") else text


def _to_markers(text: str) -> str:
    """Writes line breaks, tabs and runs of spaces, which SentencePiece would not keep, as pieces of their own."""
    return _SPACES.sub(_marker, text.replace("\n", "<n>").replace("\t", "<|tab|>"))


def _marker(spaces: re.Match[str]) -> str:
    longest, rest = divmod(len(spaces[0]), _LONGEST_BLANK)
    return f"<|blank_{_LONGEST_BLANK}|>" * longest + (f"<|blank_{rest}|>" if rest > 1 else " " * rest)


def _from_markers(text: str) -> str:
    return _MARKERS.sub(lambda marker: " " * int(marker[1]) if marker[1] else _BREAKS[marker[0]], text)
