# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints, written once per test run by transformers' `save_pretrained`."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.engine import Engine
from poptransformer.models import LLAMA2DecModel
from poptransformer.models.base_model import HFModel
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.generator import build_generator
from poptransformer.sessions import Session

# Bytes, then special tokens; the model's vocabulary equals the tokenizer's.
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>")
VOCABULARY = 256 + len(SPECIAL)
BOS, EOS = 256, 257
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"

PROMPTS = ([72, 101, 108, 108, 111], [84], [79, 110, 99, 101, 32, 117, 112, 111, 110, 32, 97])


@functools.cache
def scratch() -> Path:
    """A folder that goes when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="poptransformer-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def new_folder(name: str = "folder") -> Path:
    """An empty folder of its own."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch()))


def torch_model(family: str = "llama", tied: bool = False) -> Any:
    """A seeded model, fp32, whose logits have a standard deviation of one or more."""
    return _torch_model(family, tied)


@functools.cache
def _torch_model(family: str, tied: bool) -> Any:
    ids = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": tied}
    if family == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids))
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        sizes = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if parameter.ndim == 1 and ("norm" in name or "ln_" in name and name.endswith("weight")):
                parameter.add_(1.0)
        if not tied:
            _prefer_letters(model.lm_head.weight)
    return model.eval()


def _prefer_letters(head: torch.Tensor) -> None:
    """Logits of 0 for all but printable ASCII and the end of text, so that texts are readable."""
    head[:32], head[127:EOS], head[EOS + 1 :] = 0, 0, 0


def folder(family: str = "llama", dtype: str = "float32", tied: bool = False, tokenizer: bool = False) -> Path:
    """A checkpoint of `torch_model`, with or without a byte tokenizer and a chat template."""
    return _folder(family, dtype, tied, tokenizer)


@functools.cache
def _folder(family: str, dtype: str, tied: bool, tokenizer: bool) -> Path:
    path = new_folder(f"{family}-{dtype}")
    model = type(torch_model(family, tied))(torch_model(family, tied).config)
    model.load_state_dict(torch_model(family, tied).state_dict())
    model.to(getattr(torch, dtype)).save_pretrained(path)
    if tokenizer:
        byte_tokenizer().save_pretrained(path)
    return path


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, whose id is the byte's value."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = CHAT
    return wrapped


def engine(family: str = "llama", **kinds: Any) -> Engine:
    """An engine that tests share; they must not change it."""
    return _engine(folder(family, **kinds))


@functools.cache
def _engine(path: Path) -> Engine:
    return poptransformer.load(path)


def unfused(family: str = "llama") -> Engine:
    """An engine that tests share, with the graph as the layers wrote it."""
    return _unfused(family)


@functools.cache
def _unfused(family: str) -> Engine:
    return poptransformer.load(folder(family), fuse=False)


def saved(family: str = "llama") -> Path:
    """A saved model that tests share; they must not change it."""
    return _saved(family)


@functools.cache
def _saved(family: str) -> Path:
    return engine(family).save(new_folder("saved") / "model")


def copy_of_saved() -> Path:
    """A saved model to spoil."""
    return Path(shutil.copytree(saved(), new_folder("copy") / "model"))


def model(path: Path | None = None, **settings: Any) -> LLAMA2DecModel:
    """A model that is not built yet."""
    build = {name: settings.pop(name) for name in ("precision", "batch_size", "batch_per_step") if name in settings}
    with use_build(Build(**build)):
        return LLAMA2DecModel(**{"hf_model_name": str(path or folder()), "max_length": 32, "max_loop": 6, **settings})


def compiled_session(built: HFModel, **settings: Any) -> Session:
    """A session that has compiled `built`."""
    session = Session(**settings)
    session.compile(built)  # type: ignore[arg-type]
    return session


def inputs(*rows: list[int]) -> dict[str, np.ndarray]:
    """The `input_dict` of `Session.run`."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return {"input_ids": ids, "lengths": lengths}


def reference_ids(prompt: Sequence[int], max_new_tokens: int = 12, family: str = "llama") -> list[int]:
    """What transformers' greedy `generate` adds to the prompt."""
    return _reference_ids(tuple(prompt), max_new_tokens, family)


@functools.cache
def _reference_ids(prompt: tuple[int, ...], max_new_tokens: int, family: str) -> list[int]:
    row = torch.tensor([prompt])
    output = torch_model(family).generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def generator(family: str = "llama") -> ir.Model:
    """The generation loop of `engine(family)`."""
    return build_generator(engine(family).runtime.compiled)


@functools.cache
def without_library() -> Engine:
    """`engine()` on the function bodies."""
    return Engine(engine().runtime.compiled, engine().checkpoint, SessionSettings(use_native=False))
