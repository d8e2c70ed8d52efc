# SPDX-License-Identifier: Apache-2.0
"""The portable artefact: a folder that runs anywhere onnxruntime does.

model.onnx          step graph: one prefill or decode step
generator.onnx      whole generation: ids in, ids out
weights.bin         weights of both, page-aligned, memory-mapped when loaded
config.json, ...    config, generation config and tokenizer of the checkpoint
poptransformer.json file sizes and versions, written last
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from poptransformer.checkpoint import Checkpoint, save_checkpoint_files
from poptransformer.errors import PopTransformerError
from poptransformer.runtime.compiled import CompiledModel, ModelInfo
from poptransformer.runtime.generator import build_generator
from poptransformer.runtime.ort_session import WEIGHTS, large_weights, replaced_weights

MANIFEST = "poptransformer.json"
FORMAT = 1
_PAGE = 4096


def is_artefact(folder: str | Path) -> bool:
    """Whether `folder` was written by `save_artefact`."""
    return (Path(folder).expanduser() / MANIFEST).is_file()


def save_artefact(compiled: CompiledModel, checkpoint: Checkpoint, folder: str | Path, replace: bool = False) -> Path:
    """Writes the artefact; it appears under its name only when it is complete.

    Args:
        compiled: the model.
        checkpoint: where config and tokenizer come from.
        folder: target; an artefact that lies there is replaced.
        replace: replace whatever lies there.

    Raises:
        PopTransformerError: the target holds something else, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not is_artefact(folder) and not replace:
        if not folder.is_dir():
            raise PopTransformerError(f"{folder} is a file; a saved model is a folder. Choose another name.")
        if any(folder.iterdir()):
            raise PopTransformerError(f"{folder} is not empty and no saved model; choose another folder or empty it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise PopTransformerError(
            f"Cannot write to {folder.parent}: {error.strerror}. Choose another folder."
        ) from error
    try:
        with compiled.lock:
            _write(compiled, checkpoint, temporary)
        temporary.chmod(0o755)
        _move_into_place(temporary, folder)
    except OSError as error:
        raise PopTransformerError(
            f"Writing the model to {folder} failed: {error.strerror}. Free some disk space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(compiled: CompiledModel, checkpoint: Checkpoint, folder: Path) -> None:
    references = _write_weights(compiled.model, folder / WEIGHTS)
    for name, model in (("model.onnx", compiled.model), ("generator.onnx", build_generator(compiled))):
        with replaced_weights(model.graph, references):
            (folder / name).write_bytes(ir.serde.serialize_model(model).SerializeToString())
    save_checkpoint_files(checkpoint, folder)
    manifest = {
        "format": FORMAT,
        "source": compiled.info.source,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_weights(model: ir.Model, path: Path) -> dict[str, ir.TensorProtocol]:
    """Writes large weights one by one, each on a page boundary; returns references to them."""
    references: dict[str, ir.TensorProtocol] = {}
    with path.open("wb") as file:
        for name, tensor in large_weights(model).items():
            file.seek(-file.tell() % _PAGE, 1)
            references[name] = ir.ExternalTensor(
                path.name, file.tell(), tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
            file.write(tensor.numpy().reshape(-1).view(np.uint8).data)
    return references


def _move_into_place(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(retired / "model")
    try:
        temporary.rename(folder)
    except OSError:
        (retired / "model").rename(folder)
        retired.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


def load_artefact(folder: str | Path) -> CompiledModel:
    """Opens an artefact; its weights stay in the mapped file.

    Raises:
        PopTransformerError: a file is missing, was cut short, or has another format.
    """
    # Weights are mapped when a session is made; the working directory may have changed by then.
    folder = Path(folder).expanduser().resolve()
    for name, size in _read_manifest(folder).items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise PopTransformerError(
                f"{path} {state}, expected {size} bytes: the saved model is incomplete. Save it again."
            )
    try:
        model = ir.load(folder / "model.onnx")
    except Exception as error:  # protobuf's exceptions have no common base
        raise PopTransformerError(
            f"{folder / 'model.onnx'} is no ONNX model: {error}. The saved model is damaged; save it again."
        ) from error
    return CompiledModel(model, ModelInfo.from_metadata(dict(model.metadata_props)))


def _read_manifest(folder: Path) -> Mapping[str, int]:
    """Returns the size of each file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
        files = dict(manifest["files"]) if found == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PopTransformerError(f"{folder / MANIFEST} cannot be read: {error}. Save the model again.") from error
    if found != FORMAT:
        raise PopTransformerError(
            f"{folder} has format {found}, this version reads format {FORMAT}. Save the model again."
        )
    return files
