# SPDX-License-Identifier: Apache-2.0
"""A compiled model: the step graph after all passes, and what a runtime must know beside it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

import poptransformer
from poptransformer import passes
from poptransformer.errors import PopTransformerError
from poptransformer.graph import IR_VERSION
from poptransformer.step import StateSpec

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel

PREFIX = "poptransformer."


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a runtime needs beside the graph; travels in the model's `metadata_props`.

    Attributes:
        model_class: class that built the graph.
        source: checkpoint it was read from.
        precision: storage precision of the weights.
        max_length: tokens of prompt and answer together.
        vocab_size: V.
        stop_token_ids: ids that end an answer.
        states: what one step hands to the next.
    """

    model_class: str
    source: str
    precision: str
    max_length: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    states: tuple[StateSpec, ...]

    def to_metadata(self) -> dict[str, str]:
        """Returns it as ONNX metadata, one JSON value per field."""
        return {PREFIX + key: json.dumps(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> ModelInfo:
        """Reads what `to_metadata` wrote.

        Raises:
            PopTransformerError: the model was not written by this package.
        """
        try:
            fields: dict[str, Any] = {
                field.name: json.loads(metadata[PREFIX + field.name]) for field in dataclasses.fields(cls)
            }
        except KeyError as error:
            raise PopTransformerError(
                f"This .onnx file lacks the metadata {error}; expected a model that `engine.save` wrote."
            ) from None
        fields["stop_token_ids"] = tuple(fields["stop_token_ids"])
        fields["states"] = tuple(StateSpec(**{**state, "shape": tuple(state["shape"])}) for state in fields["states"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """The step graph after all passes.

    Attributes:
        model: inputs and outputs as in `poptransformer.step`; weights are read when a session is made.
        info: what a runtime needs beside it.
        lock: held while the model is written out, when its weights are replaced by references for a moment.
    """

    model: ir.Model
    info: ModelInfo
    lock: Any = dataclasses.field(default_factory=threading.RLock, compare=False, repr=False)


def compile_model(model: HFModel, compiler_options: Mapping[str, bool] | None = None) -> CompiledModel:
    """Runs the passes over a model whose `build_graph` has been called.

    Args:
        model: the built model.
        compiler_options: PopART's switches, recorded in the metadata.
    """
    info = ModelInfo(
        model_class=type(model).__name__,
        source=model.checkpoint.source,
        precision=model.build.precision,
        max_length=model.max_length,
        vocab_size=_vocab_size(model),
        stop_token_ids=stop_token_ids(model),
        states=model.states,
    )
    compiled = ir.Model(
        model.graph.ir_graph,
        ir_version=IR_VERSION,
        producer_name="poptransformer",
        producer_version=poptransformer.__version__,
        metadata_props=info.to_metadata() | _provenance(model, compiler_options or {}),
    )
    passes.matmul_to_linear(compiled)
    passes.store_weights(compiled, model.build.precision)
    passes.attach_functions(compiled)
    return CompiledModel(compiled, info)


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
