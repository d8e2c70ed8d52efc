# SPDX-License-Identifier: Apache-2.0
"""The quantization report of saved models: in the manifest, in the graphs, and after loading."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

import poptransformer
from poptransformer.errors import PopTransformerError
from tests.unit.runtime import tiny

SETTINGS: dict[str, Any] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int4": "int4",
    "fp8": "fp8",
    "fp8_weight": "fp8_weight",
    "recipe": {"lm_head*": "int8", "*mlp*": "int4", "*": "fp16"},
}
by_precision = pytest.mark.parametrize("precision", SETTINGS)


@functools.cache
def saved(precision: str) -> tuple[Any, Path]:
    """The report before, and the folder."""
    engine = poptransformer.load(tiny.folder(), SETTINGS[precision])
    return engine.quantization_report, engine.save(tiny.new_folder() / "model")


@by_precision
def test_it_is_read_back(precision: str) -> None:
    report, folder = saved(precision)
    found = poptransformer.load(folder).quantization_report
    assert found == report
    assert str(found) == str(report)
    assert found.summary == report.summary


@by_precision
def test_it_is_saved_again(precision: str) -> None:
    report, folder = saved(precision)
    again = poptransformer.load(folder).save(tiny.new_folder() / "model")
    assert poptransformer.load(again).quantization_report == report


@by_precision
@pytest.mark.parametrize("file", ["model.onnx", "decoder.onnx", "generator.onnx"])
def test_any_program_can_read_it(precision: str, file: str) -> None:
    report, folder = saved(precision)
    in_manifest = json.loads((folder / "poptransformer.json").read_text())["model"]["report"]["weights"]
    model = onnx.load(folder / file, load_external_data=False)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    in_graph = json.loads(properties["poptransformer.report"])["weights"]
    assert in_graph == in_manifest == json.loads(json.dumps(report.to_json()))
    assert {weight["name"] for weight in in_manifest} == {weight.name for weight in report.weights}


@by_precision
def test_its_bytes_are_those_of_the_file(precision: str) -> None:
    """The report counts the weights where they lie; tables and vectors of the file come on top."""
    report, folder = saved(precision)
    tensors = onnx.load(folder / "model.onnx", load_external_data=True).graph.initializer
    sizes = {tensor.name: onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors}
    for weight in report.weights:
        names = [weight.name, *(f"{weight.name}.{part}" for part in ("codes", "scales", "offsets"))]
        assert sum(sizes.get(name, 0) for name in names) == weight.nbytes, weight.name


@pytest.mark.parametrize(
    "damage", [[], {"weights": 5}, {"weights": [5]}, {"weights": [{"name": "x"}]}, {"weights": [{"shape": [1, 2]}]}]
)
def test_a_damaged_report_is_an_error(damage: Any) -> None:
    folder = Path(shutil.copytree(saved("int4")[1], tiny.new_folder() / "model"))
    manifest = json.loads((folder / "poptransformer.json").read_text())
    manifest["model"]["report"] = damage
    (folder / "poptransformer.json").write_text(json.dumps(manifest))
    with pytest.raises(PopTransformerError, match=r"poptransformer\.json cannot be read: .* Save the model again\."):
        poptransformer.load(folder)
