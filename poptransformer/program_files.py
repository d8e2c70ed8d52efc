# SPDX-License-Identifier: Apache-2.0
"""A saved program of layers.

model.onnx          the graph after all passes
weights.bin         its weights; of several replicas one file for each, `replica-0/weights.bin`
manifest.json       inputs, outputs, what became of each weight, file sizes; written last
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import poptransformer
from poptransformer.checkpoint.files import new_folder
from poptransformer.errors import PopTransformerError
from poptransformer.program import Program
from poptransformer.quantization_report import QuantizationReport
from poptransformer.runtime.compiled import replica_name
from poptransformer.runtime.ort_session import WEIGHTS, SessionSettings, replaced_weights
from poptransformer.runtime.weight_file import weights_to_write, write_weights

MANIFEST = "manifest.json"
GRAPH = "model.onnx"


def save(program: Program, folder: Path, about: Mapping[str, Any]) -> Path:
    """Writes a program; it appears under its name only when it is complete.

    Args:
        program: what to write.
        folder: target; a program that lies there is replaced.
        about: more for the manifest.

    Raises:
        PopTransformerError: the target holds something else.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise PopTransformerError(f"{folder} is not empty and no saved program; choose another folder or empty it.")
    with new_folder(folder) as temporary:
        _write(program, temporary, about)
    return folder


def _write(program: Program, folder: Path, about: Mapping[str, Any]) -> None:
    import onnx_ir as ir

    replicas = (program.model, *program.peers)
    references = []
    for number, model in enumerate(replicas):
        place = _weights_folder(folder, number, len(replicas))
        place.mkdir(exist_ok=True)
        references.append(write_weights(weights_to_write(model, len(replicas) > 1), place / WEIGHTS))
    with replaced_weights(program.model.graph, references[0]):
        (folder / GRAPH).write_bytes(ir.serde.serialize_model(program.model).SerializeToString())
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    manifest = {
        **about,
        "poptransformer": poptransformer.__version__,
        "inputs": _signature(program.model.graph.inputs),
        "outputs": _signature(program.model.graph.outputs),
        "nodes": len(program.model.graph),
        "num_replicas": program.num_replicas,
        "layer_per_ipu": list(program.layer_per_ipu),
        "divided": dict(program.divided),
        "weights": [dataclasses.asdict(weight) for weight in program.report.weights],
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, settings: SessionSettings) -> Program:
    """Opens a saved program; its weights stay in the mapped files.

    Args:
        folder: where it lies.
        settings: how it is to run.

    Raises:
        PopTransformerError: a file is missing or was cut short.
    """
    import onnx_ir as ir

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        replicas, stages = int(manifest["num_replicas"]), tuple(map(int, manifest["layer_per_ipu"]))
        divided, files = dict(manifest["divided"]), dict(manifest["files"])
        report = QuantizationReport.from_json(manifest["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PopTransformerError(f"{folder} holds no saved program: {error}. Save it again.") from error
    for name, size in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise PopTransformerError(f"{path} {state}, expected {size} bytes. Save the program again.")
    models = []
    for number in range(replicas):
        model = ir.load(folder / GRAPH)
        ir.external_data.set_base_dir(model.graph, str(_weights_folder(folder, number, replicas).resolve()))
        models.append(model)
    return Program(models[0], report, settings, tuple(models[1:]), stages, divided)


def _weights_folder(folder: Path, replica: int, replicas: int) -> Path:
    return folder if replicas == 1 else folder / replica_name(replica)


def _signature(values: Any) -> dict[str, str]:
    """Type and shape of each value, by name."""
    return {str(value.name): f"{value.dtype}{'' if value.shape is None else value.shape}" for value in values}
