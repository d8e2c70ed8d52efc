# SPDX-License-Identifier: Apache-2.0
"""One interface to every tokenizer a checkpoint can bring."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from poptransformer.checkpoint.detokenizer import ByteStreamDecoder, StreamDecoder, TokenTraits
from poptransformer.checkpoint.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Backend(Protocol):
    """What does the work: text to ids and back, without knowledge of special tokens' roles."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return the text of ids."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None."""

    def bytes_of(self) -> Callable[[int], bytes] | None:
        """Return what gives an id's bytes; None where a text is more than the bytes of its tokens put together."""

    def special_ids(self) -> set[int]:
        """Return the ids that `skip_special_tokens` leaves out."""

    def size(self) -> int:
        """Return the number of tokens, added ones included."""

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write files that `AutoTokenizer` can read; `config` is for `tokenizer_config.json`."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What a checkpoint says about its tokenizer beyond the vocabulary.

    Attributes:
        special_tokens: Tokens by role (`bos_token`, ...), as text.
        chat_template: Source of the chat template, or None.
        cleans_up: Whether decoding removes spaces before punctuation.
        stop_token_ids: Ids that end a generation besides `eos_token`.
        source: What error messages call the tokenizer.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    cleans_up: bool = False
    stop_token_ids: tuple[int, ...] = ()
    source: str = "the tokenizer"


class Tokenizer:
    """Text to token ids and back, with the checkpoint's special tokens and chat template.

    Args:
        backend: What encodes and decodes.
        settings: The roles of special tokens, the chat template and the like.
    """

    def __init__(self, backend: Backend, settings: TokenizerSettings) -> None:
        self.backend = backend
        self.settings = settings
        self._special_ids = backend.special_ids()
        # Streams ask about each token they get; a text has few different ones.
        self._traits = {skip: functools.cache(functools.partial(self._find_traits, skip)) for skip in (False, True)}
        self._bytes = {skip: functools.cache(functools.partial(self._find_bytes, skip)) for skip in (False, True)}
        self._bytes_of = None if settings.cleans_up else backend.bytes_of()

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, {self.settings.source})"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any text; special tokens written out in it are recognised.
            add_special_tokens: Whether to add what the model expects around a text, such as a BOS token. Pass
                False for the result of `apply_chat_template`, which writes them itself.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"expected a string to tokenize, found {type(text).__name__}")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise TokenizerError(
                f"the text {text!r} is not Unicode: it holds bytes that are not UTF-8; pass UTF-8 text"
            )
        return self.backend.encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids.

        Args:
            ids: Token ids.
            skip_special_tokens: Whether to leave special tokens out.
        """
        text = self.backend.decode(list(map(int, ids)), skip_special_tokens)
        return _clean_up(text) if self.settings.cleans_up else text

    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder | ByteStreamDecoder:
        """Return an incremental detokenizer.

        Args:
            skip_special_tokens: As for `decode`.
        """
        if self._bytes_of is not None:
            return ByteStreamDecoder(self._bytes[skip_special_tokens])
        decode = functools.partial(self.decode, skip_special_tokens=skip_special_tokens)
        return StreamDecoder(decode, self._traits[skip_special_tokens], self.settings.cleans_up)

    def _find_traits(self, skip_special_tokens: bool, token_id: int) -> TokenTraits:
        if self._is_skipped(token_id, skip_special_tokens):
            return TokenTraits(is_skipped=True, is_byte=False, length=0)
        is_byte = _BYTE_TOKEN.fullmatch(self.backend.id_to_token(token_id) or "") is not None
        return TokenTraits(False, is_byte, len(self.decode([token_id], skip_special_tokens)))

    def _find_bytes(self, skip_special_tokens: bool, token_id: int) -> bytes:
        if self._bytes_of is None or self._is_skipped(token_id, skip_special_tokens):
            return b""
        return self._bytes_of(token_id)

    def _is_skipped(self, token_id: int, skip_special_tokens: bool) -> bool:
        # A model's embedding may have more rows than the vocabulary has tokens; those decode to nothing.
        return skip_special_tokens and token_id in self._special_ids or self.backend.id_to_token(token_id) is None

    def _role_id(self, role: str) -> int | None:
        token = self.settings.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, or None."""
        return self._role_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, or None."""
        return self._role_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token, or None."""
        return self._role_id("pad_token")

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids after which a text is complete: the tokenizer's EOS and those of the generation config."""
        eos = self.eos_token_id
        own = () if eos is None else (eos,)
        return tuple(dict.fromkeys((*own, *self.settings.stop_token_ids)))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model's embedding may have more rows."""
        return self.backend.size()

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, or None."""
        return self.settings.chat_template

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the text of a conversation as the model was trained to see it.

        Encode it with `add_special_tokens=False`.

        Args:
            messages: The turns, each with `role` and `content`.
            add_generation_prompt: Whether to end with the header of an assistant's turn.
            **variables: Further variables of the template, such as `tools`.

        Raises:
            TokenizerError: If there is no template, or it fails on these messages.
        """
        if self.chat_template is None:
            raise TokenizerError(
                f"{self.settings.source} has no chat template; pass plain prompts, or use an instruction-tuned model"
            )
        from poptransformer.checkpoint.chat_template import render_chat_template  # plain prompts need none of it

        return render_chat_template(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            variables={**self.settings.special_tokens, **variables},
        )

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's files, readable by this package and by transformers' `AutoTokenizer`.

        Args:
            folder: An existing folder.
        """
        config = {**self.settings.special_tokens, "clean_up_tokenization_spaces": self.settings.cleans_up}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        self.backend.save(Path(folder), config)


def token_text(value: Any) -> str | None:
    """Return a special token's text; config files hold it as a string or as an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def stop_ids(*candidates: Any) -> tuple[int, ...]:
    """Collect stop token ids from configuration values, each an id, a list of ids, or None."""
    ids: list[int] = []
    for value in candidates:
        items: Iterable[Any] = value if isinstance(value, (list, tuple)) else (value,)
        ids += [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
    return tuple(dict.fromkeys(ids))


def _clean_up(text: str) -> str:
    """Remove the spaces that word-piece vocabularies put around punctuation and clitics."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
