# SPDX-License-Identifier: Apache-2.0
"""Compiled models on disk, found again by everything that went into them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import poptransformer
from poptransformer.errors import PopTransformerError
from poptransformer.runtime.artefact import load_artefact, save_artefact
from poptransformer.runtime.compiled import CompiledModel, replica_name

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel

logger = logging.getLogger(__name__)

_PACKAGE = Path(poptransformer.__file__).resolve().parent
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
# Attributes of a model that leave the compiled graph as it is; the checkpoint's name is not its content.
_AT_RUN_TIME = {
    *("hf_model_name", "hf_cache_dir", "override_hfconfig_from_json", "anchor_return_type"),
    *("max_loop", "early_stop", "sampling", "is_built", "states"),
}


class CompiledCache:
    """A folder of compiled models, one subfolder each.

    Args:
        folder: the folder; made when the first model is stored.
        compiler_options: what `compile_model` is given; part of the key.
        fuse: the same.
    """

    def __init__(self, folder: Path, compiler_options: Mapping[str, bool] | None = None, fuse: bool = True) -> None:
        self.folder = folder.expanduser()
        self.compiler_options = dict(compiler_options or {})
        self.fuse = fuse

    def get(
        self, model: HFModel, make: Callable[[HFModel], CompiledModel], replica: int | None = None
    ) -> CompiledModel:
        """Returns the compiled form of `model`: what lies here, or else what `make` returns, stored for the next time.

        Args:
            model: the model.
            make: compiles it.
            replica: the only replica that this process runs, which has a folder of its own.

        Raises:
            PopTransformerError: the folder cannot be written.
        """
        key = cache_key(model, self.compiler_options, self.fuse)
        path = self.folder / (key if replica is None else f"{key}-{replica_name(replica)}")
        compiled = _load(path) if path.exists() else None
        if compiled is not None:
            logger.info("using the compiled model in %s", path)
            return compiled
        save_artefact(make(model), model.checkpoint, path, replace=True)
        logger.info("stored the compiled model in %s", path)
        return load_artefact(path)


def _load(path: Path) -> CompiledModel | None:
    """Opens a compiled model; a damaged one counts as none."""
    try:
        return load_artefact(path)
    except PopTransformerError as error:
        logger.warning("%s Compiling again.", error)
        return None


def cache_key(model: HFModel, compiler_options: Mapping[str, bool] | None = None, fuse: bool = True) -> str:
    """Hash of configuration, checkpoint, versions and the source code that builds the graph.

    Raises:
        PopTransformerError: the model's class has no source file.
    """
    parts = {"checkpoint": model.checkpoint.fingerprint} | cache_parts(model, compiler_options, fuse)
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{type(model).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def cache_parts(
    model: HFModel, compiler_options: Mapping[str, bool] | None = None, fuse: bool = True
) -> dict[str, Any]:
    """Returns what makes two compiled models of one checkpoint differ, by name."""
    build = model.build
    return {
        "model": [type(model).__qualname__, *_model_sources(type(model))],
        "settings": {k: v for k, v in vars(model).items() if k not in _AT_RUN_TIME and isinstance(v, _PLAIN)},
        "compiler_options": compiler_options or {},
        "fuse": fuse,
        "package": _hash(sorted(_PACKAGE.rglob("*.py"))),
        "versions": [importlib.metadata.version(name) for name in ("onnx", "onnx-ir", "onnxscript", "onnxruntime")],
        "build": [
            build.model_type,
            build.num_replicas,
            build.recipe.fingerprint,
            build.batch_size,
            build.layer_per_ipu,
        ],
        "max_length": model.max_length,
    }


def _model_sources(model_class: type) -> list[str]:
    """Hashes of the folders that hold the classes of a model from outside of this package."""
    try:
        files = [Path(inspect.getfile(cls)).resolve() for cls in model_class.__mro__ if cls is not object]
    except (TypeError, OSError) as error:
        raise PopTransformerError(
            f"{model_class.__name__} has no source file, so a cache cannot know whether it has changed. "
            "Define it in a .py file, or set session.execution_cache_name=null."
        ) from error
    folders = {file.parent for file in files if not file.is_relative_to(_PACKAGE)}
    return [_hash(sorted(folder.glob("*.py"))) for folder in sorted(folders)]


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
