# SPDX-License-Identifier: Apache-2.0
"""Tokenizers in Hugging Face layout, by way of the `tokenizers` library.

transformers' `AutoTokenizer` takes seconds to import and pulls in torch where that is installed, so it is
used only for layouts that need its converters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.errors import CheckpointError, CorruptCheckpointError, TokenizerError
from poptransformer.checkpoint.hf_config import read_json_object
from poptransformer.checkpoint.tokenizer import SPECIAL_NAMES, Backend, Tokenizer, TokenizerSettings, token_text
from poptransformer.checkpoint.tokenizer_parts import (
    CHATGLM2_CLASS,
    CHATGLM2_FILE,
    CHATGLM_FILE,
    FastBackend,
    set_bos_eos,
    set_sentencepiece_pipeline,
)

# Roles that transformers' classes fill when no file names them, and the class a model has when none is named.
_END_OF_TEXT = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_CLASS_DEFAULTS = {
    "GPT2Tokenizer": _END_OF_TEXT,
    "GPTNeoXTokenizer": _END_OF_TEXT,
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
_CLASS_OF_MODEL = {"gpt2": "GPT2Tokenizer", "rwkv": "GPTNeoXTokenizer"}

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", CHATGLM_FILE, *_SENTENCEPIECE_FILES)


def load_folder_tokenizer(folder: Path, config: Mapping[str, Any], stop_token_ids: tuple[int, ...]) -> Tokenizer:
    """Load the tokenizer of a folder in Hugging Face layout.

    Args:
        folder: The folder.
        config: The model's configuration.
        stop_token_ids: Ids that end a generation besides the tokenizer's EOS.

    Raises:
        TokenizerError: If there is none, or it cannot be loaded.
        CorruptCheckpointError: If one of its JSON files is damaged.
    """
    path = folder / "tokenizer_config.json"
    given = read_json_object(path) if path.is_file() else {}
    class_name = _class_name(given, config)
    if (folder / "tokenizer.json").is_file():
        inner = _read_tokenizer_json(folder / "tokenizer.json")
    elif class_name == "GPT2Tokenizer" and (folder / "vocab.json").is_file():
        inner = _read_gpt2_files(folder)
    elif (folder / CHATGLM_FILE).is_file():
        from poptransformer.checkpoint.chatglm_tokenizer import load_chatglm_tokenizer

        return load_chatglm_tokenizer(folder, given, stop_token_ids)
    elif class_name == CHATGLM2_CLASS and (folder / CHATGLM2_FILE).is_file():
        from poptransformer.checkpoint.chatglm2_tokenizer import load_chatglm2_tokenizer

        return load_chatglm2_tokenizer(folder, _chat_template(folder, given), stop_token_ids)
    else:
        return _load_with_transformers(folder, given, stop_token_ids)
    try:
        special = _complete(inner, folder, given, class_name)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception for every problem
        raise CorruptCheckpointError(
            f"the tokenizer files in {folder} do not fit together: {error}; download them again"
        ) from error
    settings = TokenizerSettings(
        special_tokens=special,
        chat_template=_chat_template(folder, given),
        # Meant for word pieces; on a BPE vocabulary it would eat spaces the model wrote.
        cleans_up=bool(given.get("clean_up_tokenization_spaces")) and not _is_bpe(inner),
        stop_token_ids=stop_token_ids,
        source=str(folder),
    )
    return Tokenizer(FastBackend(inner), settings)


def _class_name(given: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the tokenizer class a checkpoint names or implies, or an empty string."""
    named = given.get("tokenizer_class") or config.get("tokenizer_class")
    name = named if isinstance(named, str) else _CLASS_OF_MODEL.get(config.get("model_type", ""), "")
    return name.removesuffix("Fast")


def _complete(inner: Any, folder: Path, given: Mapping[str, Any], class_name: str) -> dict[str, str]:
    """Apply `tokenizer_config.json` to a tokenizer as transformers 5 does; return its special tokens."""
    special = _special_tokens(inner, folder, given, class_name)
    inner.no_truncation()
    inner.no_padding()
    _add_tokens(inner, given, special)
    if class_name == "LlamaTokenizer" and _is_bpe(inner) and inner.token_to_id("<0x0A>") is not None:
        set_sentencepiece_pipeline(
            inner,
            add_prefix_space=given.get("add_prefix_space") is not False,
            only_first=given.get("legacy") is not True,
        )
    # A tokenizer.json says itself what it puts around a text, and transformers 5 believes it alone.
    if inner.post_processor is None and not (folder / "tokenizer.json").is_file():
        set_bos_eos(inner, special, bos=bool(given.get("add_bos_token")), eos=bool(given.get("add_eos_token")))
    return special


def _read_tokenizer_json(path: Path) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every problem
        raise CorruptCheckpointError(f"{path} is not a valid tokenizer: {error}; download it again") from error


def _is_bpe(inner: Any) -> bool:
    return type(inner.model).__name__ == "BPE"


def _read_gpt2_files(folder: Path) -> Any:
    """Build GPT-2's tokenizer from `vocab.json` and `merges.txt`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises bare Exception for every problem
        raise CorruptCheckpointError(f"{folder}/vocab.json and merges.txt do not make a tokenizer: {error}") from error
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _special_tokens(inner: Any, folder: Path, given: Mapping[str, Any], class_name: str) -> dict[str, str]:
    """Return special tokens by role: those the files name, else the class's own if the vocabulary has it."""
    path = folder / "special_tokens_map.json"
    named = dict(given)
    if path.is_file() and "added_tokens_decoder" not in given:  # newer files say everything in one place
        named |= read_json_object(path)
    defaults = dict(_CLASS_DEFAULTS.get(class_name, {}))
    if inner.padding is not None:
        defaults["pad_token"] = inner.padding["pad_token"]
    special: dict[str, str] = {}
    for role in SPECIAL_NAMES:
        default = defaults.get(role)
        text = token_text(named[role]) if role in named else default
        if text is not None and (role in named or inner.token_to_id(text) is not None):
            special[role] = text
    return special


def _add_tokens(inner: Any, given: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Add what the config declares and the vocabulary file lacks, in the order of the declared ids."""
    from tokenizers import AddedToken

    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    declared = sorted((given.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
    for _, entry in declared:
        if entry["content"] not in known:
            inner.add_tokens([AddedToken(**{key: value for key, value in entry.items() if key != "__type"})])
    extra = given.get("extra_special_tokens") or given.get("additional_special_tokens") or ()
    names = [*special.values(), *(extra.values() if isinstance(extra, Mapping) else extra)]
    texts = dict.fromkeys(text for text in map(token_text, names) if text is not None)
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts if text not in known])


def _chat_template(folder: Path, given: Mapping[str, Any]) -> str | None:
    """Return the default chat template: its own file goes before the config's entry."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = given.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _load_with_transformers(folder: Path, given: Mapping[str, Any], stop_token_ids: tuple[int, ...]) -> Tokenizer:
    """Load a layout that has no `tokenizer.json` through transformers' converters."""
    models = [name for name in _SENTENCEPIECE_FILES if (folder / name).is_file()]
    if models and importlib.util.find_spec("sentencepiece") is None:
        # transformers would blame another package, tiktoken.
        raise TokenizerError(
            f"{folder / models[0]} needs the sentencepiece package; run `pip install sentencepiece protobuf`, "
            "or put a tokenizer.json beside it"
        )
    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # converters fail in many ways, missing packages among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(
            f"cannot load the tokenizer of {folder}: {reason} "
            "Put a tokenizer.json there (transformers' save_pretrained writes one)"
        ) from error
    inner = getattr(loaded, "backend_tokenizer", None)
    backend: Backend
    if inner is not None:
        inner.no_truncation()
        inner.no_padding()
        backend = FastBackend(inner)
    else:
        from poptransformer.checkpoint.slow_tokenizer import SlowBackend

        backend = SlowBackend(loaded)
    special = {role: str(token) for role, token in loaded.special_tokens_map.items() if role in SPECIAL_NAMES}
    template = loaded.chat_template if isinstance(loaded.chat_template, str) else _chat_template(folder, given)
    settings = TokenizerSettings(
        special_tokens=special,
        chat_template=template,
        cleans_up=loaded.clean_up_tokenization_spaces and (inner is None or not _is_bpe(inner)),
        stop_token_ids=stop_token_ids,
        source=str(folder),
    )
    return Tokenizer(backend, settings)
