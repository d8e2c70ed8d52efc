# SPDX-License-Identifier: Apache-2.0
"""The portable artefact: a folder that runs anywhere onnxruntime does.

model.onnx          step graph: one prefill or decode step
decoder.onnx        the same with the choice of the next token at its end: what streams run
generator.onnx      whole generation: ids in, ids out
sampler.onnx        logits to tokens, for those who call model.onnx themselves
weights.bin         weights of the first three, page-aligned, memory-mapped when loaded; in a model of several replicas
                    one for each, `replica-0/weights.bin`
config.json, ...    config, generation config and tokenizer of the checkpoint
poptransformer.json file sizes, hashes of the graphs and what a runtime must know, written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poptransformer.checkpoint import SAVED_MODEL, Checkpoint, save_checkpoint_files
from poptransformer.checkpoint.files import is_artefact, sampled_hash
from poptransformer.errors import PopTransformerError
from poptransformer.runtime.compiled import CompiledModel, ModelInfo, replica_name
from poptransformer.runtime.ort_session import WEIGHTS, replaced_weights
from poptransformer.runtime.weight_file import weights_to_write, write_weights

if TYPE_CHECKING:
    import onnx_ir as ir

MANIFEST = SAVED_MODEL
FORMAT = 1


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
    references = [_write_replica(replica, folder) for replica in (compiled, *compiled.peers)][0]
    hashes = {}
    for name, model in _graphs(compiled).items():
        (folder / name).write_bytes(content := _serialized(model, references))
        hashes[name] = hashlib.sha256(content).hexdigest()
    save_checkpoint_files(checkpoint, folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest = {
        "format": FORMAT,
        "model": dataclasses.asdict(compiled.info),
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
        "sha256": hashes,
        "replicas": {
            str(replica.replica): sampled_hash(_weights_of(replica, folder)) for replica in (compiled, *compiled.peers)
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_replica(compiled: CompiledModel, folder: Path) -> dict[str, ir.TensorProtocol]:
    path = _weights_of(compiled, folder)
    path.parent.mkdir(exist_ok=True)
    return write_weights(weights_to_write(compiled.model, compiled.info.num_replicas > 1), path)


def _weights_of(compiled: CompiledModel, folder: Path) -> Path:
    is_alone = compiled.info.num_replicas == 1
    return folder / WEIGHTS if is_alone else folder / replica_name(compiled.replica) / WEIGHTS


def _serialized(model: ir.Model, references: Mapping[str, ir.TensorProtocol]) -> bytes:
    import onnx_ir as ir

    used = {key: value for key, value in references.items() if key in model.graph.initializers}
    with replaced_weights(model.graph, used):
        return ir.serde.serialize_model(model).SerializeToString()


def _graphs(compiled: CompiledModel) -> dict[str, ir.Model]:
    """Returns the graphs by the names of their files."""
    from poptransformer.runtime.decoder import build_decoder
    from poptransformer.runtime.generator import build_generator
    from poptransformer.runtime.sampler import build_sampler

    # Ranks that share a model cut the decoder into pieces of their own.
    chained = compiled.info.num_ranks == 1
    return {
        "model.onnx": compiled.model,
        "decoder.onnx": build_decoder(compiled, chained),
        "generator.onnx": build_generator(compiled, chained),
        "sampler.onnx": build_sampler(),
    }


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


def load_artefact(folder: str | Path, replica: int | None = None) -> CompiledModel:
    """Opens an artefact; its weights stay in the mapped file.

    Args:
        folder: where it lies.
        replica: the only replica that is wanted; the first with all others as its peers by default.

    Raises:
        PopTransformerError: a file is missing, was cut short, or has another format.
    """
    # Files are opened when a session is made; the working directory may have changed by then.
    folder = Path(folder).expanduser().resolve()
    manifest = _read_manifest(folder)
    _check_files(folder, manifest, replica)
    info: ModelInfo = manifest["model"]
    wanted = sorted(map(int, manifest["replicas"])) if replica is None else [replica]
    first, *others = (CompiledModel(folder, info, number) for number in wanted)
    for compiled in (first, *others) if info.num_replicas > 1 else ():
        path = _weights_of(compiled, folder)
        if sampled_hash(path) != manifest["replicas"].get(str(compiled.replica)):
            raise PopTransformerError(
                f"{path} is not what was saved: was it only partly written? Save the model again."
            )
    return dataclasses.replace(first, peers=tuple(others))


def _check_files(folder: Path, manifest: dict[str, Any], replica: int | None) -> None:
    """Raises unless all files that are wanted are there, as large as they were written and, graphs, as they were."""
    for name, size in manifest["files"].items():
        if replica is not None and "/" in name and not name.startswith(f"{replica_name(replica)}/"):
            continue
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Returns `model`, a `ModelInfo`, and the tables `files`, `sha256` and `replicas`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
        if found == FORMAT:
            tables = {name: dict(manifest[name]) for name in ("files", "sha256")}
            tables["replicas"] = dict(manifest.get("replicas", {"0": ""}))
            return {**tables, "model": ModelInfo.from_json(manifest["model"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PopTransformerError(f"{folder / MANIFEST} cannot be read: {error}. Save the model again.") from error
    raise PopTransformerError(f"{folder} has format {found}, this version reads format {FORMAT}. Save the model again.")
