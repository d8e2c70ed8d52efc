# SPDX-License-Identifier: Apache-2.0
"""Saved models that are damaged: clear words when they are loaded, not strange ones later."""

from __future__ import annotations

import json
import os

import pytest

import poptransformer
from poptransformer.errors import PopTransformerError
from tests.unit.runtime import tiny


def test_truncated_and_missing_files() -> None:
    for name in json.loads((tiny.saved() / "poptransformer.json").read_text())["files"]:
        folder = tiny.copy_of_saved()
        size = (folder / name).stat().st_size
        os.truncate(folder / name, size - 1)
        with pytest.raises(PopTransformerError, match=rf"{name} has {size - 1} bytes, expected {size} bytes"):
            poptransformer.load(folder)
        (folder / name).unlink()
        with pytest.raises(PopTransformerError, match=rf"{name} is missing, expected {size} bytes"):
            poptransformer.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "files": 3}', "\x00\x01"])
def test_a_damaged_manifest(content: str) -> None:
    folder = tiny.copy_of_saved()
    (folder / "poptransformer.json").write_text(content)
    with pytest.raises(PopTransformerError, match=r"poptransformer\.json cannot be read"):
        poptransformer.load(folder)


def test_another_format() -> None:
    folder = tiny.copy_of_saved()
    tiny.edit_json(folder / "poptransformer.json", format=99)
    with pytest.raises(PopTransformerError, match="has format 99, this version reads format 1. Save the model again"):
        poptransformer.load(folder)


def test_a_model_file_that_is_none() -> None:
    folder = tiny.copy_of_saved()
    path = folder / "model.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(PopTransformerError, match=r"model\.onnx has changed since it was saved"):
        poptransformer.load(folder)


def test_a_missing_manifest_makes_it_a_checkpoint_without_weights() -> None:
    folder = tiny.copy_of_saved()
    (folder / "poptransformer.json").unlink()
    with pytest.raises(PopTransformerError, match="has no weights"):
        poptransformer.load(folder)
