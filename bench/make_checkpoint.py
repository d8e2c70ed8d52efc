# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint with seeded random weights in Hugging Face layout, without holding it in memory.

    python -m bench.make_checkpoint --shape llama-1.1b /tmp/llama-1.1b
    python -m bench.make_checkpoint --shape gpt2-124m --dtype fp32 --shard-mb 200 /tmp/gpt2

The folder appears under its name only when it is complete. Same shape, dtype and seed: same bytes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import shutil
import statistics
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from bench.shapes import CONFIGS, Tensors, tensors_of

# name -> (numpy type, safetensors' name, config.json's name)
DTYPES = {
    "fp16": (np.dtype(np.float16), "F16", "float16"),
    "bf16": (np.dtype(ml_dtypes.bfloat16), "BF16", "bfloat16"),
    "fp32": (np.dtype(np.float32), "F32", "float32"),
}
BLOCK = 1 << 22  # elements drawn at a time
SPARE = 64 << 20  # bytes of disk that stay free


def make_checkpoint(
    folder: Path, config: Mapping[str, Any], dtype: str = "fp16", seed: int = 0, shard_bytes: int = 1 << 30
) -> Path:
    """Writes the checkpoint.

    Args:
        folder: target; must not exist.
        config: what config.json will hold, one of `CONFIGS` or like them.
        dtype: one of `DTYPES`, for all tensors.
        seed: any integer.
        shard_bytes: a shard is closed before it would grow beyond this.

    Returns:
        `folder`.

    Raises:
        SystemExit: the target exists, or the disk is too full.
    """
    if folder.exists():
        raise SystemExit(f"{folder} exists already; remove it or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_space(folder.parent, checkpoint_bytes(config, dtype))
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(temporary, config, dtype, seed, shard_bytes)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def checkpoint_bytes(config: Mapping[str, Any], dtype: str) -> int:
    """Bytes of all tensors."""
    return sum(map(math.prod, tensors_of(config).values())) * DTYPES[dtype][0].itemsize


def check_space(folder: Path, needed: int) -> None:
    """Exits unless the disk of `folder` has room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed. "
            "Free some space, or set TMPDIR to a folder on a larger disk."
        )


def _write(folder: Path, config: Mapping[str, Any], dtype: str, seed: int, shard_bytes: int) -> None:
    shards = list(_shards(tensors_of(config), DTYPES[dtype][0].itemsize, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, config, dtype, seed)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        content = {"metadata": {"total_size": checkpoint_bytes(config, dtype)}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", content)
    _write_json(folder / "config.json", {**config, "dtype": DTYPES[dtype][2]})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Tensors, itemsize: int, limit: int) -> Iterator[Tensors]:
    """Cuts the tensors, in order, into shards of at most `limit` bytes; a larger tensor gets one of its own."""
    shard: Tensors = {}
    size = 0
    for name, shape in tensors.items():
        more = math.prod(shape) * itemsize
        if shard and size + more > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += more
    yield shard


def _write_shard(file: BinaryIO, shard: Tensors, config: Mapping[str, Any], dtype: str, seed: int) -> None:
    itemsize, kind = DTYPES[dtype][0].itemsize, DTYPES[dtype][1]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.items():
        begin, end = end, end + math.prod(shape) * itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    file.write(struct.pack("<Q", len(text)) + text)
    for name, shape in shard.items():
        for block in _draw(name, shape, config["initializer_range"], dtype, seed):
            file.write(block.view(np.uint8).data)


def _draw(name: str, shape: tuple[int, ...], std: float, dtype: str, seed: int) -> Iterator[np.ndarray]:
    """Yields a tensor's elements in blocks: ones for norms, zeros for biases, else normal with deviation `std`."""
    count = math.prod(shape)
    if len(shape) == 1:
        yield np.full(count, name.endswith("weight"), DTYPES[dtype][0])
        return
    table = _normal_table(std, dtype)
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        yield table[np.frombuffer(generator.bytes(2 * size), "<u2")]


@functools.cache
def _normal_table(std: float, dtype: str) -> np.ndarray:
    """65536 equally likely values of a normal distribution: 16 random bits look one up, which is quick."""
    normal = statistics.NormalDist(0.0, std)
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)]).astype(DTYPES[dtype][0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.make_checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write it; must not exist")
    parser.add_argument("--shape", choices=CONFIGS, default="llama-1.1b")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-mb", type=int, default=1024, help="largest shard, in MiB (default: 1024)")
    options = parser.parse_args(arguments)
    folder = make_checkpoint(
        options.folder, CONFIGS[options.shape], options.dtype, options.seed, options.shard_mb << 20
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB in {len(list(folder.iterdir()))} files", file=sys.stderr)


if __name__ == "__main__":
    main()
