# SPDX-License-Identifier: Apache-2.0
"""A compiled model: the step graph after all passes, and what a runtime must know beside it."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import poptransformer
from poptransformer.errors import ConfigError
from poptransformer.quantization_report import QuantizationReport
from poptransformer.state import SLOTS, StateSpec
from poptransformer.utils.progress import progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from poptransformer.models.base_model import HFModel

logger = logging.getLogger(__name__)

PREFIX = "poptransformer."


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a runtime needs beside the graph; travels with the model, in its `metadata_props` too.

    Attributes:
        model_class: class that built the graph.
        source: checkpoint it was read from.
        precision: storage precision of the weights, or the recipe as JSON.
        max_length: tokens of prompt and answer together.
        vocab_size: V.
        stop_token_ids: ids that end an answer.
        states: what one step hands to the next.
        prompt_marks: ids that a prompt must hold, one of each group.
        model_type: how it was built, `shard` or `tp`.
        fuse: whether nodes were put together that one kernel computes.
        quantization: the details by which weights were quantized; keys of `QuantizationConfig`.
        report: what became of each weight matrix.
        num_replicas: replicas that share the weights; each runs the same graph.
        layer_per_ipu: decoder blocks of each pipeline stage; empty where there is one stage.
    """

    model_class: str
    source: str
    precision: str
    max_length: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    states: tuple[StateSpec, ...]
    prompt_marks: tuple[tuple[int, ...], ...] = ()
    model_type: str = "shard"
    fuse: bool = True
    quantization: dict[str, Any] = dataclasses.field(default_factory=dict)
    report: QuantizationReport = QuantizationReport()
    num_replicas: int = 1
    layer_per_ipu: tuple[int, ...] = ()

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return max(1, len(self.layer_per_ipu))

    @property
    def num_ranks(self) -> int:
        """Ranks that run the model together."""
        return self.num_replicas * self.num_stages

    @property
    def has_fp8_cache(self) -> bool:
        """Whether keys and values are kept in 8 bits."""
        return any(state.in_place and state.dtype == "uint8" for state in self.states)

    def to_metadata(self) -> dict[str, str]:
        """Returns it as ONNX metadata, one JSON value per field."""
        return {PREFIX + key: json.dumps(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ModelInfo:
        """Makes it of what `dataclasses.asdict` gave, after a way through JSON."""
        states = tuple(StateSpec(**{**state, "shape": tuple(state["shape"])}) for state in fields["states"])
        report = QuantizationReport.from_json(fields.get("report", {}).get("weights", ()))
        known = {**fields, "states": states, "report": report}
        known |= {name: tuple(fields.get(name, ())) for name in ("stop_token_ids", "layer_per_ipu")}
        known["prompt_marks"] = tuple(map(tuple, fields.get("prompt_marks", ())))
        return cls(**known)


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """The step graph after all passes: in memory, or in the folder of a saved model.

    A saved model's sessions open its files as they are. Neither the graph is needed then nor the packages that read
    and write graphs, which take longer to import than the model to open.

    Attributes:
        source: the graph, or the folder of a saved model.
        info: what a runtime needs beside it.
        replica: whose weights these are.
        peers: the other replicas, where they are to run in this process.
        lock: held while the model is written out, when its weights are replaced by references for a moment.
    """

    source: ir.Model | Path
    info: ModelInfo
    replica: int = 0
    peers: tuple[CompiledModel, ...] = dataclasses.field(default=(), repr=False)
    lock: Any = dataclasses.field(default_factory=threading.RLock, compare=False, repr=False)

    @property
    def folder(self) -> Path | None:
        """The folder of a saved model; None for one in memory."""
        return self.source if isinstance(self.source, Path) else None

    @property
    def weights_folder(self) -> Path | None:
        """The folder of a saved model's `weights.bin`; None for a model in memory."""
        if self.folder is None or self.info.num_replicas == 1:
            return self.folder
        return self.folder / replica_name(self.replica)

    @functools.cached_property
    def model(self) -> ir.Model:
        """Inputs and outputs as in `poptransformer.step`; weights are read when a session is made."""
        if not isinstance(self.source, Path):
            return self.source
        import onnx_ir as ir

        model = ir.load(self.source / "model.onnx")
        ir.external_data.set_base_dir(model.graph, str(self.weights_folder))
        return model


def replica_name(replica: int) -> str:
    """Name of the folder, in a saved model of several replicas, that holds the weights of one."""
    return f"replica-{replica}"


def compile_replicas(
    model: HFModel,
    compiler_options: Mapping[str, bool] | None = None,
    fuse: bool = True,
    replicas: Sequence[int] | None = None,
) -> CompiledModel:
    """Builds and compiles replicas of a model.

    Args:
        model: the model; its graph is built once for each replica.
        compiler_options: see `compile_model`.
        fuse: see `compile_model`.
        replicas: which ones; all by default.

    Returns:
        The first of them, with the others as its peers.
    """
    compiled = []
    for replica in range(model.build.num_replicas) if replicas is None else replicas:
        if model.build.num_replicas > 1:
            logger.info("building replica %d of %d", replica, model.build.num_replicas)
        if not model.is_built or model.build.replica != replica:
            model.build = dataclasses.replace(model.build, replica=replica)
            model.build_graph()
        with progress("compiling"):
            compiled.append(compile_model(model, compiler_options, fuse))
    return dataclasses.replace(compiled[0], peers=tuple(compiled[1:]))


def compile_model(
    model: HFModel, compiler_options: Mapping[str, bool] | None = None, fuse: bool = True
) -> CompiledModel:
    """Runs the passes over a model whose `build_graph` has been called.

    Args:
        model: the built model.
        compiler_options: PopART's switches, recorded in the metadata.
        fuse: put nodes together that one kernel computes; False keeps the graph as the layers wrote it.

    Raises:
        ConfigError: caches of 8 bits are asked for, and there are no caches.
    """
    import onnx_ir as ir

    from poptransformer import passes
    from poptransformer.graph import IR_VERSION
    from poptransformer.runtime.quantization import quantize

    compiled = ir.Model(
        model.graph.ir_graph,
        ir_version=IR_VERSION,
        producer_name="poptransformer",
        producer_version=poptransformer.__version__,
    )
    _check_caches(model)
    passes.matmul_to_linear(compiled)
    report = quantize(compiled, model)
    states = passes.store_caches(compiled, model.states, _cache_dtype(model))
    if len(model.build.layer_per_ipu or ()) > 1:
        passes.place_after_blocks(compiled)
    if fuse:
        passes.fuse(compiled)
        passes.choose_early(compiled)
    passes.attach_functions(compiled)
    passes.name_nested_functions(compiled)
    info = ModelInfo(
        model_class=type(model).__name__,
        source=model.checkpoint.source,
        precision=model.build.recipe.text,
        max_length=model.max_length,
        vocab_size=_vocab_size(model),
        stop_token_ids=stop_token_ids(model),
        states=states,
        prompt_marks=model.prompt_marks,
        model_type=model.build.model_type,
        fuse=fuse,
        quantization=dataclasses.asdict(model.build.recipe.details),
        report=report,
        num_replicas=model.build.num_replicas,
        layer_per_ipu=model.build.layer_per_ipu or (),
    )
    compiled.metadata_props.update(info.to_metadata() | _provenance(model, compiler_options or {}))
    return CompiledModel(compiled, info, model.build.replica)


def _check_caches(model: HFModel) -> None:
    if model.fp8_cache and not any(SLOTS in state.shape for state in model.states):
        raise ConfigError(
            f"fp8_cache is true, but {type(model).__name__} keeps no keys and values: its states have the same size "
            "for every length. Set model.fp8_cache=false."
        )


def _cache_dtype(model: HFModel) -> str:
    """Caches are as exact as the weights: 16 bits beside weights of 8 or 4, 8 bits where they are asked for."""
    if model.fp8_cache:
        return "uint8"
    return "float32" if model.build.recipe.is_float else "float16"


def state_bytes(model: HFModel, sizes: Mapping[str, int]) -> int:
    """Bytes that one step hands to the next, caches in the type that they will have.

    Args:
        model: a model whose `build_graph` has been called.
        sizes: sizes of the named dimensions.
    """
    readers = {str(v.name): {use.node.op_type for use in v.uses()} for v in model.graph.ir_graph.inputs}
    total = 0
    for state in model.states:
        count = math.prod(sizes[dim] if isinstance(dim, str) else dim for dim in state.shape)
        is_narrow = readers[state.past] == {"CachedAttention"}  # what `store_caches` changes
        total += count * np.dtype(_cache_dtype(model) if is_narrow else state.dtype).itemsize
    return total


def stop_token_ids(model: HFModel) -> tuple[int, ...]:
    """Ids that end an answer: the generation config's, the tokenizer's and the model config's."""
    checkpoint = model.checkpoint
    if checkpoint.has_tokenizer:
        return tuple(sorted(checkpoint.tokenizer.stop_token_ids))
    ids = checkpoint.generation_config.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)


def _vocab_size(model: HFModel) -> int:
    size = model.graph.ir_graph.outputs[0].shape[2]  # type: ignore[index]
    return size if isinstance(size, int) else model.hf_config.vocab_size


def _provenance(model: HFModel, compiler_options: Mapping[str, bool]) -> dict[str, str]:
    """Config, placement and versions, for whoever opens the file years later."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("onnx", "onnx-ir", "onnxruntime")}
    versions["poptransformer"] = poptransformer.__version__
    build = {
        "model_type": model.build.model_type,
        "num_replicas": model.build.num_replicas,
        "layer_per_ipu": model.build.layer_per_ipu,
        "outline_blocks": model.outline_blocks,
        "num_embedding_partitions": model.num_embedding_partitions,
        "compiler_options": dict(compiler_options),
    }
    return {
        PREFIX + "config": json.dumps(model.hf_config.raw),
        PREFIX + "build": json.dumps(build),
        PREFIX + "versions": json.dumps(versions),
    }
