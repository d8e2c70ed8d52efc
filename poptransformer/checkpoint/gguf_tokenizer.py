# SPDX-License-Identifier: Apache-2.0
"""Building a tokenizer from a GGUF file's metadata.

A GGUF has no `tokenizer.json`: it holds the vocabulary, merges or scores, token types, and the name of a
pre-tokenizer whose rules llama.cpp knows by heart (`llama-vocab.cpp`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from poptransformer.checkpoint.errors import TokenizerError
from poptransformer.checkpoint.gguf_file import GGUFFile
from poptransformer.checkpoint.tokenizer import Tokenizer, TokenizerSettings
from poptransformer.checkpoint.tokenizer_parts import FastBackend, set_bos_eos, set_sentencepiece_pipeline

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Vocabularies split by GPT-2's own expression, those that split off each digit first, and those with another.
_GPT2_NAMES = ("gpt-2", "gpt2", "default", "mpt", "olmo", "jais")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_EXPRESSIONS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
}
_ADDS_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")


def gguf_tokenizer(gguf: GGUFFile, stop_token_ids: tuple[int, ...]) -> Tokenizer:
    """Build the tokenizer a GGUF file describes.

    Args:
        gguf: The opened file.
        stop_token_ids: Ids that end a generation besides the tokenizer's EOS.

    Raises:
        TokenizerError: If the file holds none, or one of a kind that is not supported.
    """
    prefix = "tokenizer.ggml."
    metadata = {key.removeprefix(prefix): value for key, value in gguf.metadata.items() if key.startswith(prefix)}
    kind, tokens = metadata.get("model"), metadata.get("tokens")
    if kind not in ("gpt2", "llama") or not isinstance(tokens, list) or not tokens:
        raise TokenizerError(
            f"{gguf.file.path} has a tokenizer of the kind {kind!r}; "
            "supported: gpt2 and llama, with a vocabulary. Use the model's safetensors instead"
        )
    special: dict[str, str] = {}
    for role, key in _ROLES.items():
        token_id = metadata.get(key)
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            special[role] = tokens[token_id]
    try:
        inner = _build(metadata, kind, special)
    except TokenizerError as error:
        raise TokenizerError(f"{gguf.file.path} {error}; use the model's safetensors instead") from error
    except Exception as error:  # the library raises bare Exception for every problem
        raise TokenizerError(
            f"the tokenizer in {gguf.file.path} does not fit together: {error}; convert the file again"
        ) from error
    template = gguf.metadata.get("tokenizer.chat_template")
    settings = TokenizerSettings(
        special_tokens=special,
        chat_template=template if isinstance(template, str) else None,
        stop_token_ids=stop_token_ids,
        source=str(gguf.file.path),
    )
    return Tokenizer(FastBackend(inner), settings)


def _build(metadata: Mapping[str, Any], kind: str, special: Mapping[str, str]) -> Any:
    """Build the `tokenizers.Tokenizer`."""
    if len(set(metadata["tokens"])) != len(metadata["tokens"]):
        raise TokenizerError("lists a token twice")
    inner = _byte_level(metadata) if kind == "gpt2" else _sentencepiece(metadata, special)
    _mark_added(inner, metadata["tokens"], metadata.get("token_type", ()))
    adds_bos = metadata.get("add_bos_token", kind == "llama" or metadata.get("pre") in _ADDS_BOS)
    set_bos_eos(inner, special, bos=bool(adds_bos), eos=bool(metadata.get("add_eos_token", False)))
    return inner


def _byte_level(metadata: Mapping[str, Any]) -> Any:
    """Build a byte-level BPE tokenizer, GPT-2's kind."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = metadata.get("pre", "default")
    if name in _EXPRESSIONS:
        splits: list[Any] = [
            pre_tokenizers.Split(Regex(_EXPRESSIONS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif name in _GPT2_NAMES or name in _DIGIT_NAMES:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if name in _DIGIT_NAMES else []
        splits = [
            *digits,
            pre_tokenizers.ByteLevel(add_prefix_space=bool(metadata.get("add_space_prefix", False))),
        ]
    else:
        known = sorted({*_EXPRESSIONS, *_GPT2_NAMES, *_DIGIT_NAMES})
        raise TokenizerError(f"has the pre-tokenizer {name!r}; supported: {', '.join(known)}")
    vocabulary = {token: index for index, token in enumerate(metadata["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("merges", ())]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(splits)
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(metadata: Mapping[str, Any], special: Mapping[str, str]) -> Any:
    """Build a SentencePiece BPE tokenizer with byte fallback, Llama 2's kind."""
    from tokenizers import Tokenizer, models

    tokens: list[str] = metadata["tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if metadata.get("merges"):
        merges = [tuple(merge.split(" ", 1)) for merge in metadata["merges"]]
    else:
        merges = merges_from_scores(vocabulary, metadata.get("scores", ()))
    unknown = special.get("unk_token")
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    set_sentencepiece_pipeline(inner, add_prefix_space=metadata.get("add_space_prefix", True), only_first=True)
    return inner


def merges_from_scores(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Recover BPE merges from SentencePiece scores.

    SentencePiece joins the neighbours whose union has the best score, so every way of writing a piece as two
    pieces is a merge, ranked by the piece's score.

    Args:
        vocabulary: Ids by piece.
        scores: A score per id, better ones higher.
    """
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        score = float(scores[index]) if index < len(scores) else -float(index)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, index, vocabulary[left], vocabulary[right], left, right))
    return [entry[4:] for entry in sorted(ranked)]


def _mark_added(inner: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Declare control tokens special, and user-defined ones as whole."""
    from tokenizers import AddedToken

    kinds = np.asarray(types, np.int64)[: len(tokens)]  # of 10^5 tokens a few are marked

    def marked(kind: int, special: bool) -> list[Any]:
        found = np.flatnonzero(kinds == kind).tolist()
        return [AddedToken(tokens[index], special=special, normalized=False) for index in found]

    inner.add_special_tokens(marked(_CONTROL, special=True) + marked(_UNKNOWN, special=True))
    inner.add_tokens(marked(_USER_DEFINED, special=False))
