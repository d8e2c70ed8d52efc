# SPDX-License-Identifier: Apache-2.0
"""The weight files of a folder: one file, or shards listed in an index."""

from __future__ import annotations

from pathlib import Path

from poptransformer.checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from poptransformer.checkpoint.files import SAVED_MODEL
from poptransformer.checkpoint.hf_config import read_json_object
from poptransformer.checkpoint.safetensors_file import read_safetensors
from poptransformer.checkpoint.state_dict import LazyTensor
from poptransformer.checkpoint.torch_bin import read_torch_bin

# In the order transformers prefers them; an index lists the shards of the name before it.
_CANDIDATES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_weights(folder: Path) -> tuple[dict[str, LazyTensor], list[bytes], list[Path]]:
    """Open the weight files of a folder.

    Args:
        folder: A folder in Hugging Face layout.

    Returns:
        The tensors by name, the headers of the files that have one, and the files.

    Raises:
        CheckpointNotFoundError: If the folder has no weights, or lacks a shard.
        CorruptCheckpointError: If a file is damaged, or the index does not match its shards.
        UnsupportedCheckpointError: If the weights are `.bin` files and torch is not installed.
    """
    for name in _CANDIDATES:
        path = folder / name
        if path.is_file():
            return _read_shards(path) if name.endswith(".json") else _read_files([path])
    lone = sorted(folder.glob("*.safetensors"))
    if len(lone) == 1:
        return _read_files(lone)
    if (folder / SAVED_MODEL).is_file():
        raise CheckpointNotFoundError(
            f"{folder} is a saved model, whose graph is built already; open it with "
            f"poptransformer.load({str(folder)!r}), or name the checkpoint that it was made from"
        )
    raise CheckpointNotFoundError(
        f"{folder} has no weights; expected one of {', '.join(_CANDIDATES)}"
        + (f" (the index of {lone[0].name} and {len(lone) - 1} more is missing)" if lone else "")
    )


def _read_files(paths: list[Path]) -> tuple[dict[str, LazyTensor], list[bytes], list[Path]]:
    tensors: dict[str, LazyTensor] = {}
    headers = []
    for path in paths:
        if path.suffix == ".bin":
            found = read_torch_bin(path)
        else:
            found, header = read_safetensors(path)
            headers.append(header)
        if twice := tensors.keys() & found.keys():
            raise CorruptCheckpointError(f"{min(twice)!r} is in {path} and in another shard; download it again")
        tensors |= found
    return tensors, headers, paths


def _read_shards(index: Path) -> tuple[dict[str, LazyTensor], list[bytes], list[Path]]:
    """Open the shards an index lists, and check that it tells the truth about them."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptCheckpointError(f"{index} has no weight_map from tensors to files; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        # An index comes from strangers: it must not reach outside its folder.
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise CorruptCheckpointError(f"{index} lists {name!r}; expected the names of weight files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointNotFoundError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} shards its index lists: "
            f"{', '.join(missing[:5])}; download them"
        )
    tensors, headers, paths = _read_files([index.parent / name for name in names])
    absent = [key for key in weight_map if key not in tensors]
    if absent:
        raise CorruptCheckpointError(
            f"{index} lists {absent[0]!r} in {weight_map[absent[0]]}, which does not hold it; download both again"
        )
    return tensors, headers, [*paths, index]
