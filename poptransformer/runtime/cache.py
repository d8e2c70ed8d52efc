# SPDX-License-Identifier: Apache-2.0
"""Compiled models on disk, found again by everything that went into them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import poptransformer
from poptransformer.errors import PopTransformerError
from poptransformer.runtime.artefact import is_artefact, load_artefact, save_artefact
from poptransformer.runtime.compiled import CompiledModel

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel

logger = logging.getLogger(__name__)


class CompiledCache:
    """A folder of compiled models, one subfolder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, model: HFModel) -> CompiledModel | None:
        """Returns the compiled form of `model` if one lies here; a damaged one counts as none."""
        path = self._path(model)
        if not is_artefact(path):
            return None
        try:
            compiled = load_artefact(path)
        except PopTransformerError as error:
            logger.warning("%s Compiling again.", error)
            return None
        logger.info("using the compiled model in %s", path)
        return compiled

    def store(self, model: HFModel, compiled: CompiledModel) -> CompiledModel:
        """Saves a compiled model and returns it as `find` will."""
        path = save_artefact(compiled, model.checkpoint, self._path(model))
        logger.info("stored the compiled model in %s", path)
        return load_artefact(path)

    def _path(self, model: HFModel) -> Path:
        return self.folder / cache_key(model)


def cache_key(model: HFModel) -> str:
    """Hash of configuration, checkpoint, versions and the source code that builds the graph."""
    build = model.build
    parts = {
        "checkpoint": model.checkpoint.fingerprint,
        "model": [type(model).__qualname__, _source_hash(Path(inspect.getfile(type(model))).parent)],
        "package": _source_hash(Path(poptransformer.__file__).parent),
        "versions": [importlib.metadata.version(name) for name in ("onnx", "onnx-ir", "onnxscript", "onnxruntime")],
        "build": [
            build.model_type,
            build.num_replicas,
            build.precision,
            build.batch_size,
            build.layer_per_ipu,
        ],
        "options": [model.max_length, model.outline_blocks, model.num_embedding_partitions],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{type(model).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _source_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
