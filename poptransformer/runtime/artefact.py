# SPDX-License-Identifier: Apache-2.0
"""The portable artefact: a folder that runs anywhere onnxruntime does.

model.onnx          step graph: one prefill or decode step
decoder.onnx        the same with the choice of the next token at its end: what streams run
generator.onnx      whole generation: ids in, ids out
sampler.onnx        logits to tokens, for those who call model.onnx themselves
weights.bin         weights of the first three, page-aligned, memory-mapped when loaded
config.json, ...    config, generation config and tokenizer of the checkpoint
poptransformer.json file sizes, hashes of the graphs and what a runtime must know, written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poptransformer.checkpoint import SAVED_MODEL, Checkpoint, save_checkpoint_files
from poptransformer.errors import PopTransformerError
from poptransformer.runtime.compiled import CompiledModel, ModelInfo
from poptransformer.runtime.ort_session import WEIGHTS, large_weights, replaced_weights

if TYPE_CHECKING:
    import onnx_ir as ir

MANIFEST = SAVED_MODEL
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
    import onnx_ir as ir

    references = write_weights(compiled.model, folder / WEIGHTS)
    hashes = {}
    for name, model in _graphs(compiled).items():
        used = {key: value for key, value in references.items() if key in model.graph.initializers}
        with replaced_weights(model.graph, used):
            content = ir.serde.serialize_model(model).SerializeToString()
        (folder / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    save_checkpoint_files(checkpoint, folder)
    manifest = {
        "format": FORMAT,
        "model": dataclasses.asdict(compiled.info),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "sha256": hashes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _graphs(compiled: CompiledModel) -> dict[str, ir.Model]:
    """Returns the graphs by the names of their files."""
    from poptransformer.runtime.decoder import build_decoder
    from poptransformer.runtime.generator import build_generator
    from poptransformer.runtime.sampler import build_sampler

    return {
        "model.onnx": compiled.model,
        "decoder.onnx": build_decoder(compiled),
        "generator.onnx": build_generator(compiled),
        "sampler.onnx": build_sampler(),
    }


def write_weights(model: ir.Model, path: Path) -> dict[str, ir.TensorProtocol]:
    """Writes large weights one by one, each on a page boundary; returns references to them."""
    import onnx_ir as ir

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
    # Files are opened when a session is made; the working directory may have changed by then.
    folder = Path(folder).expanduser().resolve()
    manifest = _read_manifest(folder)
    for name, size in manifest["files"].items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise PopTransformerError(
                f"{path} {state}, expected {size} bytes: the saved model is incomplete. Save it again."
            )
    for name, expected in manifest["sha256"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise PopTransformerError(f"{folder / name} has changed since it was saved. Save the model again.")
    return CompiledModel(folder, manifest["model"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Returns `model`, a `ModelInfo`, and the tables `files` and `sha256`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
        if found == FORMAT:
            tables = {name: dict(manifest[name]) for name in ("files", "sha256")}
            return {**tables, "model": ModelInfo.from_json(manifest["model"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PopTransformerError(f"{folder / MANIFEST} cannot be read: {error}. Save the model again.") from error
    raise PopTransformerError(f"{folder} has format {found}, this version reads format {FORMAT}. Save the model again.")
