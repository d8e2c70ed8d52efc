# SPDX-License-Identifier: Apache-2.0
"""Opening a checkpoint by whatever names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from poptransformer.checkpoint.checkpoint import Checkpoint
from poptransformer.checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from poptransformer.checkpoint.folder import fingerprint, open_folder, token_ids
from poptransformer.checkpoint.gguf_checkpoint import gguf_config, gguf_generation_config, gguf_tensors
from poptransformer.checkpoint.gguf_file import read_gguf
from poptransformer.checkpoint.gguf_tokenizer import gguf_tokenizer
from poptransformer.checkpoint.hf_config import HFConfig
from poptransformer.checkpoint.hub import PACKAGE_SCHEME, download, is_hub_name, package_resource
from poptransformer.checkpoint.random_weights import RandomStateDict
from poptransformer.checkpoint.state_dict import StateDict
from poptransformer.checkpoint.tokenizer import stop_ids
from poptransformer.checkpoint.weight_files import read_weights


def open_checkpoint(name_or_path: str | Path, *, cache_dir: Path | str | None = None) -> Checkpoint:
    """Open a checkpoint; nothing in it is executed, and its weights are not read yet.

    Args:
        name_or_path: A folder in Hugging Face layout, a file in one, a `.gguf` file, `package://<package>/<file>`,
            or the name of a repository on the Hugging Face hub.
        cache_dir: Where hub downloads go; None for the hub library's own cache.

    Raises:
        CheckpointNotFoundError: If there is no such checkpoint, or it cannot be reached.
        CorruptCheckpointError: If one of its files is damaged.
        UnsupportedCheckpointError: If it needs something that is not supported or not installed.
    """
    name = str(name_or_path)
    if name.startswith(PACKAGE_SCHEME):
        return _open_path(package_resource(name), name)
    path = Path(name).expanduser()
    if path.exists():
        return _open_path(path, name)
    if isinstance(name_or_path, Path) or not is_hub_name(name):
        raise CheckpointNotFoundError(
            f"there is no {name!r}; expected a folder in Hugging Face layout, a .gguf file, "
            "package://<package>/<file>, or the name of a hub repository"
        )
    return open_folder(download(name, cache_dir), name, read_weights)


def _open_path(path: Path, source: str) -> Checkpoint:
    if path.is_dir():
        if (path / "config.json").is_file():
            return open_folder(path, source, read_weights)
        packed = sorted(path.glob("*.gguf"))
        if len(packed) == 1:
            return _open_gguf(packed[0], source)
        raise CheckpointNotFoundError(
            f"{path} has no config.json; expected a folder in Hugging Face layout"
            + (f", or name one of {', '.join(file.name for file in packed)}" if packed else "")
        )
    if path.suffix == ".gguf":
        return _open_gguf(path, source)
    if path.suffix in (".safetensors", ".bin"):
        return open_folder(path.parent, source, read_weights)
    raise CheckpointNotFoundError(f"{path} is not a checkpoint; expected a folder, a .gguf or a .safetensors file")


def _open_gguf(path: Path, source: str) -> Checkpoint:
    gguf = read_gguf(path)
    config = gguf_config(gguf)
    generation = gguf_generation_config(gguf)
    has_tokenizer = "tokenizer.ggml.tokens" in gguf.metadata
    return Checkpoint(
        HFConfig(config, str(path)),
        StateDict(gguf_tensors(gguf, config), source),
        generation_config=generation,
        fingerprint=fingerprint([path], [gguf.file.buffer[: gguf.header_bytes]]),
        source=source,
        files=[path],
        load_tokenizer=partial(gguf_tokenizer, gguf, stop_ids(generation.get("eos_token_id")))
        if has_tokenizer
        else None,
    )


def random_checkpoint(
    config: Path | str | Mapping[str, Any],
    *,
    seed: int = 0,
    tokenizer_from: str | Path | None = None,
    cache_dir: Path | str | None = None,
) -> Checkpoint:
    """Make a checkpoint with seeded random weights, for any size a config describes.

    Args:
        config: A `config.json`, a folder with one, or its content.
        seed: Any integer; the same seed gives the same weights.
        tokenizer_from: A checkpoint whose tokenizer to use; None for no tokenizer.
        cache_dir: Where hub downloads go.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CorruptCheckpointError: If it is not a JSON object.
    """
    if isinstance(config, Mapping):
        hf_config = HFConfig(config, "the given configuration")
    else:
        path = Path(config).expanduser()
        hf_config = HFConfig.from_file(path / "config.json" if path.is_dir() else path)
    std = hf_config.get("initializer_range", 0.02)
    if isinstance(std, bool) or not isinstance(std, (int, float)) or std < 0:
        raise CorruptCheckpointError(f"initializer_range of {hf_config.source} is {std!r}; expected a number >= 0")
    source = f"random weights for {hf_config.source}"
    donor = None if tokenizer_from is None else open_checkpoint(tokenizer_from, cache_dir=cache_dir)
    content = json.dumps([seed, hf_config.raw], sort_keys=True, default=str).encode()
    return Checkpoint(
        hf_config,
        RandomStateDict(seed, float(std), source),
        generation_config=token_ids(hf_config) if donor is None else donor.generation_config,
        fingerprint=fingerprint([], [content, donor.fingerprint.encode() if donor else b""]),
        source=source,
        load_tokenizer=(lambda: donor.tokenizer) if donor is not None and donor.has_tokenizer else None,
    )
