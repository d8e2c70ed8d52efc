# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import entry, pack_safetensors, write_folder

from poptransformer.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    open_checkpoint,
    release,
)
from poptransformer.checkpoint.dtypes import SAFETENSORS_DTYPES, numpy_dtype
from poptransformer.checkpoint.safetensors_file import read_safetensors

pytestmark = pytest.mark.unit


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal(7).astype(np.float16),
        "c": rng.integers(0, 9, (2, 2), dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.0, np.float64),
    }


def test_arrays_are_read_only_views_of_the_file(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    state = open_checkpoint(write_folder(tmp_path, tensors)).state_dict
    for key, array in tensors.items():
        found = state[key]
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and state.shape(key) == array.shape
        assert not found.flags.writeable
    assert state["a"].ctypes.data == state["a"].ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        state["a"][0, 0] = 1


@pytest.mark.parametrize("name", SAFETENSORS_DTYPES)
def test_every_dtype(tmp_path: Path, name: str) -> None:
    dtype = numpy_dtype(name)
    data = bytes(range(1, 1 + 4 * dtype.itemsize)) if name != "BOOL" else b"\0\1\1\0"
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack_safetensors({"w": entry(name, [2, 2], 0, len(data))}, data))
    array = read_safetensors(path)[0]["w"].load()
    assert array.dtype == dtype and array.shape == (2, 2) and array.tobytes() == data


def test_unaligned_tensors_are_copied(tmp_path: Path) -> None:
    data = b"\1" + np.arange(3, dtype=np.float32).tobytes()
    header = {"x": entry("U8", [1], 0, 1), "y": entry("F32", [3], 1, 13)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack_safetensors(header, data))
    array = read_safetensors(path)[0]["y"].load()
    assert array.flags.aligned and not array.flags.writeable and array.tolist() == [0, 1, 2]


def test_release_gives_pages_back_and_keeps_the_data(tmp_path: Path) -> None:
    big = np.arange(1 << 18, dtype=np.float32)
    state = open_checkpoint(write_folder(tmp_path, {"big": big})).state_dict
    array = state["big"]
    assert array.sum() == big.sum()
    assert release(array) and release(array.reshape(512, -1).T)
    np.testing.assert_array_equal(array, big)
    assert not release(big) and not release(array[:0]) and not release(array[::2])


DAMAGE = {
    "empty": (b"", "is empty"),
    "no length": (b"\1\2\3", "less than the 8"),
    "length beyond the file": (b"\xff\xff\xff\0\0\0\0\0{}", "its header claims"),
    "not JSON": (pack_safetensors(b"{oops}"), "not JSON"),
    "not UTF-8": (pack_safetensors(b'{"\xff": 1}'), "not JSON"),
    "deeply nested": (pack_safetensors(b"[" * 100000), "not JSON"),
    "not an object": (pack_safetensors([1]), "JSON list"),
    "a name twice": (pack_safetensors(b'{"a": 1, "a": 2}'), "twice"),
    "entry of another kind": (pack_safetensors({"a": 3}), "expected dtype"),
    "negative shape": (pack_safetensors({"a": entry("F32", [-1], 0, 4)}, b"1234"), "expected dtype"),
    "boolean shape": (pack_safetensors({"a": entry("F32", [True], 0, 4)}, b"1234"), "expected dtype"),
    "size differs": (pack_safetensors({"a": entry("F32", [2], 0, 4)}, b"1234"), "needs 8 bytes"),
    "reversed range": (pack_safetensors({"a": entry("F32", [1], 4, 0)}, b"1234"), "needs 4 bytes"),
    "overlap": (
        pack_safetensors({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456"),
        "'b' at byte 2 overlaps 'a'",
    ),
    "hole": (
        pack_safetensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 4, 6)}, b"123456"),
        "leaves a hole after 'a'",
    ),
    "truncated": (pack_safetensors({"a": entry("F32", [4], 0, 16)}, b"1234"), "truncated"),
    "trailing bytes": (pack_safetensors({"a": entry("U8", [1], 0, 1)}, b"12"), "follow the header"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_names_the_file_and_the_problem(tmp_path: Path, kind: str) -> None:
    content, message = DAMAGE[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)


def test_an_unknown_dtype_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack_safetensors({"a": entry("F4", [2], 0, 1)}, b"1"))
    with pytest.raises(UnsupportedCheckpointError, match="'a' of .* has dtype F4; supported: BOOL"):
        read_safetensors(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    good = (write_folder(tmp_path, tensors) / "model.safetensors").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged.safetensors"
    for trial in range(300):
        bad = bytearray(good)
        if trial % 3 == 0:
            del bad[rng.randrange(len(bad)) :]
        for _ in range(trial % 3):
            bad[rng.randrange(min(len(bad), 400))] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            found, _ = read_safetensors(path)
        except CheckpointError:
            continue
        for tensor in found.values():
            tensor.load()


def shard(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    (folder / "config.json").write_text("{}")
    names = {}
    for number, (key, array) in enumerate(tensors.items()):
        name = f"model-{number}.safetensors"
        save_file({key: array}, folder / name)
        names[key] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_shards(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    shard(tmp_path, tensors)
    state = open_checkpoint(tmp_path).state_dict
    assert state.keys() == tensors.keys()
    np.testing.assert_array_equal(state["a"], tensors["a"])
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"lacks 1 of the 5 shards .*model-1\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "expected the names of weight files beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected the names of weight files beside it"),
        (
            '{"weight_map": {"zz": "model-0.safetensors"}}',
            "lists 'zz' in model-0.safetensors, which does not hold it",
        ),
    ],
)
def test_an_index_that_lies(tmp_path: Path, tensors: dict[str, np.ndarray], index: str, message: str) -> None:
    shard(tmp_path, tensors)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptCheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_folder_without_an_index_or_weights(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    shard(tmp_path, tensors)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="index of model-0.safetensors and 4 more is missing"):
        open_checkpoint(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointNotFoundError, match="has no weights; expected one of model.safetensors"):
        open_checkpoint(tmp_path)
