# SPDX-License-Identifier: Apache-2.0
"""`HFModel`: from a Hugging Face checkpoint to the step graph, whatever goes in and comes out."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from poptransformer.build import check_choice, check_positive, current_build, use_build
from poptransformer.checkpoint import (
    Checkpoint,
    HFConfig,
    StateDict,
    Tokenizer,
    open_checkpoint,
    random_checkpoint,
)
from poptransformer.errors import ConfigError, GraphError
from poptransformer.placement import check_placement
from poptransformer.utils.progress import progress

if TYPE_CHECKING:
    # Imported where a graph is built; running a compiled model needs none of it.
    import onnx_ir as ir

    from poptransformer.graph import Graph
    from poptransformer.step import StateSpec

logger = logging.getLogger(__name__)

OUTLINE_BLOCKS = ("single_block", "multi_block")
HF_MODEL_CLASSES = ("auto_model", "auto_model_for_causallm")


class HFModel:
    """A model read from a Hugging Face checkpoint.

    Subclasses override `build_model_graph`, and where needed `build_input_dict`, `build_output_dict` and
    `process_hf_model_state_dict`.

    Args:
        hf_model_name: hub name, folder, `.gguf` file or `package://<package>/<file>`.
        hf_cache_dir: where hub downloads go; None is the hub's own cache.
        hf_model_class_name: `auto_model` or `auto_model_for_causallm`; kept for PopTransformer's configs, the
            checkpoint's keys tell which one it is.
        override_hfconfig_from_json: a config.json to build with seeded random weights instead of a checkpoint.
        max_length: tokens of prompt and answer together; None takes what the checkpoint was trained for.
        layer_per_ipu: decoder blocks on each IPU, in order; their sum must be the number of blocks.
        max_loop: most tokens to generate; None is up to `max_length`.
        topk: 1 is greedy, k > 1 draws from the k likeliest tokens, 0 from all.
        temperature: divides the logits before drawing.
        top_p: draws from the likeliest tokens of that total probability.
        min_p: drops tokens less likely than `min_p` times the likeliest.
        repetition_penalty: above 1 makes tokens that have occurred less likely.
        seed: seed of the draws; None takes a new one each time.
        num_beams: beam search over that many beams.
        stop: strings that end an answer.
        early_stop: end a row at the checkpoint's end-of-text token instead of after `max_loop` tokens.
        outline_blocks: which blocks the IPU compiler may share: `single_block`, `multi_block` or None.
        num_embedding_partitions: pieces that the IPU planner may cut the embedding table into.
        fp8_cache: keep keys and values in 8 bits, as E4M3FN: half of what fp16 takes, a quarter of fp32.
        anchor_return_type: PopART's anchor return type; onnxruntime returns what `ALL` returns.
    """

    def __init__(
        self,
        *,
        hf_model_name: str | None = None,
        hf_cache_dir: str | None = None,
        hf_model_class_name: str = "auto_model_for_causallm",
        override_hfconfig_from_json: str | None = None,
        max_length: int | None = None,
        layer_per_ipu: Sequence[int] | None = None,
        max_loop: int | None = None,
        topk: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        num_beams: int = 1,
        stop: Sequence[str] = (),
        early_stop: bool = False,
        outline_blocks: str | None = None,
        num_embedding_partitions: int = 1,
        fp8_cache: bool = False,
        anchor_return_type: str = "ALL",
    ) -> None:
        logger.info("Initializing model class: %s", type(self).__name__)
        check_choice("hf_model_class_name", hf_model_class_name, HF_MODEL_CLASSES)
        if outline_blocks is not None:
            check_choice("outline_blocks", outline_blocks, OUTLINE_BLOCKS)
        for name, value in (("max_length", max_length), ("max_loop", max_loop)):
            if value is not None:
                check_positive(name, value)
        check_positive("num_embedding_partitions", num_embedding_partitions)
        self.build = dataclasses.replace(
            current_build(), layer_per_ipu=None if layer_per_ipu is None else tuple(layer_per_ipu)
        )
        self.hf_model_name = hf_model_name
        self.hf_cache_dir = hf_cache_dir
        self.override_hfconfig_from_json = override_hfconfig_from_json
        self.max_loop = max_loop
        self.early_stop = early_stop
        self.outline_blocks = outline_blocks
        self.num_embedding_partitions = num_embedding_partitions
        self.fp8_cache = fp8_cache
        self.anchor_return_type = anchor_return_type
        self.sampling: dict[str, Any] = {
            "top_k": topk,
            "temperature": temperature,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "num_beams": num_beams,
            "stop": tuple(stop),
        }
        if topk == 1 and (temperature, top_p, min_p) != (1.0, 1.0, 0.0):
            logger.warning("topk is 1, which is greedy: temperature, top_p and min_p change nothing. Set model.topk=0.")
        self._requested_max_length = max_length
        self.states: tuple[StateSpec, ...] = ()
        self.is_built = False

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Self:
        """Creates the model for a checkpoint that is already open."""
        model = cls(hf_model_name=checkpoint.source, **kwargs)
        model.checkpoint = checkpoint
        return model

    # -- checkpoint ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """The opened checkpoint; its tensors are read when they are needed."""
        if self.override_hfconfig_from_json:
            return random_checkpoint(Path(self.override_hfconfig_from_json), tokenizer_from=self.hf_model_name)
        if not self.hf_model_name:
            raise ConfigError(
                "model.hf_model_name is empty. Set it to a hub name, a folder or a .gguf file, or set "
                "model.override_hfconfig_from_json to a config.json for random weights."
            )
        logger.info("loading pretrained hf model: %s", self.hf_model_name)
        return open_checkpoint(self.hf_model_name, cache_dir=self.hf_cache_dir)

    @property
    def hf_config(self) -> HFConfig:
        """The checkpoint's config.json."""
        return self.checkpoint.config

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        tokenizer = self.checkpoint.tokenizer
        logger.info("initialized tokenizer by model_name: %s", self.hf_model_name)
        return tokenizer

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in self.hf_config:
                return self.hf_config[name]
        raise ConfigError("The config names no number of layers (num_hidden_layers, n_layer or num_layers).")

    @property
    def position_limit(self) -> int | None:
        """Positions that the weights have an embedding for; None where any number works (rotary)."""
        return None

    @property
    def trained_length(self) -> int | None:
        """Tokens of a row that the checkpoint was trained for; None where its config does not say."""
        return self.hf_config.get("max_position_embeddings") or self.position_limit

    @property
    def prompt_marks(self) -> tuple[tuple[int, ...], ...]:
        """Token ids without which a prompt makes no sense: it must hold one of each group. Most models need none."""
        return ()

    @functools.cached_property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        length = self._requested_max_length or self.trained_length or 2048
        if self.position_limit is not None and length > self.position_limit:
            raise ConfigError(
                f"max_length is {length}, but the checkpoint has embeddings for {self.position_limit} positions. "
                f"Set model.max_length to at most {self.position_limit}."
            )
        return length

    def process_hf_model_state_dict(self, state_dict: StateDict) -> StateDict:
        """Hook: renames or converts the checkpoint's tensors before layers ask for them."""
        return state_dict

    @staticmethod
    def as_causal_lm(
        state_dict: StateDict, prefix: str, embedding: str, tied: bool, head: str = "lm_head"
    ) -> StateDict:
        """Gives the tensors the names that transformers' causal language model has for them.

        Args:
            state_dict: as stored: perhaps by the bare model, without `prefix`, or with a tied table under the head's
                name alone.
            prefix: what the bare model is called in the language model, e.g. `model`.
            embedding: the token table in the bare model, e.g. `embed_tokens.weight`.
            tied: whether the head shares that table.
            head: what the head is called.
        """
        if embedding in state_dict:
            state_dict = state_dict.renamed(lambda key: key if key.startswith(f"{head}.") else f"{prefix}.{key}")
        table, head_key = f"{prefix}.{embedding}", f"{head}.weight"
        if tied and table not in state_dict and head_key in state_dict:
            state_dict = state_dict.renamed(lambda key: table if key == head_key else key)
        return state_dict

    # -- graph --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def graph(self) -> Graph:
        """The step graph; empty before `build_graph`."""
        from poptransformer.graph import Graph

        return Graph()

    def build_model_graph(self) -> ir.Value:
        """Adds the model to `self.graph`, reading `self.step`; returns the logits `[B, M, V]`."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model_graph(self).")

    def build_graph(self) -> None:
        """Builds the step graph, with the weights of replica `self.build.replica`.

        Raises:
            ConfigError: `layer_per_ipu` does not add up to the number of layers.
            MissingWeightError: the checkpoint lacks a tensor.
            GraphError: `build_model_graph` returned something else than logits.
        """
        import onnx_ir as ir

        from poptransformer.graph import Graph
        from poptransformer.step import Step

        self._check_family()
        if self.build.layer_per_ipu is not None:
            check_placement(self.build.layer_per_ipu, self.num_layers)
        self.graph = Graph(type(self).__name__)
        state_dict = self.process_hf_model_state_dict(self.checkpoint.state_dict)
        with progress("loading", total=len(state_dict) or None) as advance:
            build = dataclasses.replace(self.build, graph=self.graph, state_dict=state_dict, advance=advance)
            with use_build(build):
                self.step = Step(self.graph)
                logits = self.build_model_graph()
        if not isinstance(logits, ir.Value):
            raise GraphError(
                f"{type(self).__name__}.build_model_graph returned {logits!r}; expected the logits, a value [B, M, V]. "
                "Is a `return` missing?"
            )
        self._check_vocabulary(logits)
        if not self.step.has_chosen:
            logits = self.step.chosen(logits)
        self.states = tuple(self.step.finish(logits))
        self.is_built = True

    def _check_vocabulary(self, logits: ir.Value) -> None:
        """Raises where the logits have another width than the vocabulary: a head was left out."""
        vocab_size, shape = self.hf_config.get("vocab_size"), logits.shape
        if vocab_size is None or shape is None or not isinstance(shape[-1], int):
            return
        if len(shape) != 3 or shape[-1] != vocab_size:
            raise GraphError(
                f"{type(self).__name__}.build_model_graph returned {logits.name} of shape {shape}; expected logits "
                f"[B, M, {vocab_size}], as vocab_size is {vocab_size}. Is the LMHead missing?"
            )

    def _check_family(self) -> None:
        """Raises where the checkpoint is of another architecture than this class builds."""
        package = sys.modules.get(type(self).__module__.rpartition(".")[0])
        known, found = getattr(package, "MODEL_TYPES", ()), self.hf_config.get("model_type")
        if known and found is not None and found not in known:
            raise ConfigError(
                f"{self.checkpoint.source} is of model_type {found}, but {type(self).__name__} builds "
                f"{' or '.join(known)}. Use the example of that model, or another checkpoint."
            )
        if not getattr(package, "accepts", lambda _: True)(self.hf_config):
            raise ConfigError(
                f"{self.checkpoint.source} is of another architecture with the same model_type {found}, which "
                f"{type(self).__name__} does not build. Use the example of that model, or another checkpoint."
            )

    # -- inputs and outputs -------------------------------------------------------------------------------------

    def build_input_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Turns `config.inputs` into the arrays that `session.run` takes."""
        raise NotImplementedError

    def build_output_dict(self, anchor_arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Turns what `session.run` returned into text."""
        raise NotImplementedError
