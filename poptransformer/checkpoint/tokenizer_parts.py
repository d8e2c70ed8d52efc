# SPDX-License-Identifier: Apache-2.0
"""What tokenizers of folders and of GGUF files have in common: `tokenizers` objects and their pipelines."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.files import write_json, write_text

_SPACE = "\u2581"  # SentencePiece's visible space

# By these a folder's tokenizer is ChatGLM-6B's, or ChatGLM2's and ChatGLM3's.
CHATGLM_FILE = "ice_text.model"
CHATGLM2_CLASS, CHATGLM2_FILE = "ChatGLMTokenizer", "tokenizer.model"


@dataclass(frozen=True)
class FastBackend:
    """A `tokenizers.Tokenizer`.

    Attributes:
        inner: The tokenizer; padding and truncation are off.
    """

    inner: Any

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        return self.inner.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return the text of ids."""
        return self.inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self.inner.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None."""
        return self.inner.id_to_token(token_id)

    def bytes_of(self) -> Callable[[int], bytes] | None:
        """Return what gives an id's bytes; None where a text is more than the bytes of its tokens put together."""
        if type(self.inner.decoder).__name__ != "ByteLevel":
            return None
        return lambda token_id: _token_bytes(self.inner.id_to_token(token_id) or "")

    def special_ids(self) -> set[int]:
        """Return the ids that `skip_special_tokens` leaves out."""
        return {token_id for token_id, token in self.inner.get_added_tokens_decoder().items() if token.special}

    def size(self) -> int:
        """Return the number of tokens, added ones included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        write_text(folder / "tokenizer.json", _written(self.inner))
        # The generic class reads tokenizer.json as it is; others rebuild parts of it from their own defaults.
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **config})


def _written(inner: Any) -> str:
    """Return a tokenizer as JSON, with each merge of a BPE model as one text: it loads in three quarters of the time.

    The library writes merges as pairs and reads both. As texts they do not allow for spaces in tokens.
    """
    text = inner.to_str()
    content = json.loads(text)
    merges = content["model"].get("merges")
    if not merges:
        return text
    content["model"]["merges"] = [" ".join(pair) for pair in merges]
    shorter = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    try:
        is_same = type(inner).from_str(shorter).to_str() == text
    except Exception:  # the library raises bare Exception for every problem
        is_same = False
    return shorter if is_same else text


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """What a byte-level vocabulary writes for each byte: itself, or a letter further on where it is not printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _token_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token; an added one may hold other characters and is a text then."""
    try:
        return bytes(map(_byte_of_character().__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "surrogatepass")


def set_bos_eos(inner: Any, special: Mapping[str, str], *, bos: bool, eos: bool) -> None:
    """Make a tokenizer add BOS before and EOS after a text, or neither.

    Args:
        inner: A `tokenizers.Tokenizer`.
        special: Special tokens by role.
        bos: Whether to add BOS; ignored where there is none.
        eos: Whether to add EOS; ignored where there is none.
    """
    from tokenizers import processors

    first = [special["bos_token"]] if bos and "bos_token" in special else []
    last = [special["eos_token"]] if eos and "eos_token" in special else []
    inner.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[
            *first,
            "$A",
            *last,
            *(f"{token}:1" for token in first),
            "$B:1",
            *(f"{token}:1" for token in last),
        ],
        special_tokens=[(token, inner.token_to_id(token)) for token in dict.fromkeys(first + last)],
    )


def set_sentencepiece_pipeline(inner: Any, *, add_prefix_space: bool, only_first: bool) -> None:
    """Give a BPE model the spaces SentencePiece uses: visible ones inside, a leading one taken away again.

    Args:
        inner: A `tokenizers.Tokenizer`.
        add_prefix_space: Whether a text is given a leading space.
        only_first: Whether only the text's start gets one, and not each piece after a special token.
    """
    from tokenizers import decoders, pre_tokenizers

    scheme = ("first" if only_first else "always") if add_prefix_space else "never"
    inner.normalizer = None
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_prefix_space else steps)
