# SPDX-License-Identifier: Apache-2.0
"""`poptransformer.load`. It begins to read a saved model before it imports what runs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poptransformer.checkpoint.files import is_artefact
from poptransformer.numpy_import import import_numpy
from poptransformer.read_ahead import read_ahead

if TYPE_CHECKING:
    from poptransformer.engine import Engine
    from poptransformer.runtime.distribution import Distribution
    from poptransformer.runtime.ort_session import SessionSettings


def load(
    name_or_path: str | Path,
    precision: str | Mapping[str, Any] | None = None,
    model_type: str | None = None,
    num_replicas: int = 1,
    max_length: int | None = None,
    batch_size: int = 1,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    quantization: Mapping[str, Any] | None = None,
    fuse: bool | None = None,
    fp8_cache: bool | None = None,
    layer_per_ipu: Sequence[int] | None = None,
    enable_pipeline: bool = False,
) -> Engine:
    """Loads a checkpoint, or a folder that `Engine.save` wrote, and makes it ready to run.

    Args:
        name_or_path: hub name, folder, `.gguf` file, `package://<package>/<file>`, or a saved model.
        precision: storage of the weights: fp32 (the default), fp16, bf16, int8, int4, fp8 or fp8_weight; or a recipe,
            from patterns of weight names to these. A saved model has its own.
        model_type: `shard` (the default) or `tp`. A saved model has its own.
        num_replicas: tensor-parallel replicas.
        max_length: tokens of prompt and answer together; by default what the model was trained for.
        batch_size: rows that the model is planned for; calls may use any number.
        threads: CPU threads; None uses every core this process may use.
        cache_dir: where hub downloads go.
        quantization: details of it, keys of `poptransformer.recipe.QuantizationConfig`.
        fuse: compute several nodes of the graph by one kernel (the default); False runs the graph as the layers wrote
            it. A saved model is what it was when it was saved.
        fp8_cache: keep keys and values in 8 bits, as E4M3FN; otherwise they take 16 beside weights of 8 or 4 bits, and
            32 beside others. A saved model has its own.
        layer_per_ipu: decoder blocks of each pipeline stage, in order; None is one stage.
        enable_pipeline: let the stages overlap: `batch_size` rows go through them together, and the rows of a call are
            as many such groups as they make.
    """
    is_saved = is_artefact(name_or_path)
    if is_saved:
        read_ahead(Path(name_or_path).expanduser())
    # Imported while the files are read: this takes longer than to open a saved model.
    import_numpy()
    from poptransformer.build import Build, use_build
    from poptransformer.engine import Engine
    from poptransformer.recipe import QuantizationConfig
    from poptransformer.runtime.distribution import Distribution
    from poptransformer.runtime.ort_session import SessionSettings

    settings = SessionSettings(threads=threads)
    build = Build(
        model_type="shard" if model_type is None else model_type,
        num_replicas=num_replicas,
        precision="fp32" if precision is None else precision,
        quantization=QuantizationConfig.from_mapping(quantization or {}),
        batch_size=batch_size,
        enable_pipeline=enable_pipeline,
    )
    distribution = Distribution(micro_batch=batch_size if enable_pipeline else None)
    if is_saved:
        asked = {"precision": None if precision is None else build.recipe.text, "max_length": max_length}
        asked |= {"model_type": model_type, "fuse": fuse, "fp8_cache": fp8_cache, **(quantization or {})}
        return _load_saved(Path(name_or_path).expanduser().resolve(), asked, settings, distribution)
    # A saved model needs no reader of other formats, and nothing that builds graphs.
    from poptransformer.checkpoint import open_checkpoint
    from poptransformer.models import model_class_for

    checkpoint = open_checkpoint(name_or_path, cache_dir=cache_dir)
    with use_build(build):
        model = model_class_for(checkpoint.config).from_checkpoint(
            checkpoint, max_length=max_length, fp8_cache=bool(fp8_cache), layer_per_ipu=layer_per_ipu
        )
    return Engine.from_model(model, settings, fuse is not False, distribution)


def _load_saved(
    folder: Path, asked: Mapping[str, Any], settings: SessionSettings, distribution: Distribution
) -> Engine:
    """Opens a saved model, if it is what is asked for; None asks for nothing."""
    from poptransformer.checkpoint import open_checkpoint_files
    from poptransformer.engine import Engine
    from poptransformer.errors import ConfigError
    from poptransformer.runtime.artefact import load_artefact

    compiled = load_artefact(folder)
    info = compiled.info
    found = {name: getattr(info, name) for name in ("precision", "max_length", "model_type", "fuse")}
    found |= {"fp8_cache": info.has_fp8_cache, **info.quantization}
    for name, value in asked.items():
        if value is not None and value != found.get(name):
            raise ConfigError(
                f"{folder} was saved with {name} {found.get(name)}, not {value}. Load it without {name}, or save the "
                f"checkpoint again with {name}={value}."
            )
    return Engine(compiled, open_checkpoint_files(folder), settings, distribution)
