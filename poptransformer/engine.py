# SPDX-License-Identifier: Apache-2.0
"""The Python API: load a checkpoint, get logits, generate, stream, chat, save."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poptransformer import generation
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import Checkpoint, Tokenizer, open_checkpoint, open_checkpoint_files
from poptransformer.errors import ConfigError
from poptransformer.quantization_report import QuantizationReport
from poptransformer.recipe import QuantizationConfig
from poptransformer.runtime.artefact import is_artefact, load_artefact, save_artefact
from poptransformer.runtime.compiled import CompiledModel, compile_replicas
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.open import open_runtime
from poptransformer.runtime.ort_session import SessionSettings

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFModel

Ids = Sequence[int]
Prompts = str | Sequence[str] | Ids | Sequence[Ids]


class Engine:
    """A model ready to run.

    Attributes:
        checkpoint: config, tokenizer and generation config.
        runtime: the compiled model in onnxruntime.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        checkpoint: Checkpoint,
        settings: SessionSettings | None = None,
        distribution: Distribution | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.runtime = open_runtime(compiled, settings, distribution)

    @classmethod
    def from_model(
        cls,
        model: HFModel,
        settings: SessionSettings | None = None,
        fuse: bool = True,
        distribution: Distribution | None = None,
    ) -> Engine:
        """Compiles a model, all of its replicas."""
        return cls(compile_replicas(model, fuse=fuse), model.checkpoint, settings, distribution)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def quantization_report(self) -> QuantizationReport:
        """How each weight matrix is stored, and what quantization changed; printing it shows a table."""
        return self.runtime.compiled.info.report

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return frozenset(self.runtime.compiled.info.stop_token_ids)

    def logits(self, input_ids: Any, lengths: Any = None) -> np.ndarray:
        """Returns the logits of a whole prefill.

        Args:
            input_ids: int `[B, L]`, right-padded; one row may be given as `[L]`.
            lengths: int `[B]`, real tokens of each row; all of them by default.

        Returns:
            float32 `[B, L, V]`; what lies past a row's length means nothing.
        """
        ids = np.atleast_2d(_integers("input_ids", input_ids))
        if ids.ndim != 2 or ids.size == 0:
            raise ConfigError(f"input_ids has shape {list(ids.shape)}; expected [B, L], at least one row of one token.")
        batch, count = ids.shape
        lengths = np.full(batch, count) if lengths is None else _integers("lengths", lengths)
        if lengths.shape != (batch,) or (lengths < 1).any() or (lengths > count).any():
            raise ConfigError(f"lengths must hold {batch} numbers from 1 to {count}, found {lengths.tolist()}.")
        positions = np.broadcast_to(np.arange(count), (batch, count))
        ids = np.where(positions < lengths[:, None], ids, 0)  # whatever stands for padding outside
        generation.check_prompts(self.runtime, [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)])
        return self.runtime.start(batch, count).forward(ids, lengths, positions).numpy()

    def generate(self, prompts: Prompts, **sampling: Any) -> Any:
        """Generates a continuation of every prompt.

        Args:
            prompts: a text, a list of texts, one list of ids or a list of such lists.
            **sampling: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`,
                `stop`, `num_beams`, `length_penalty`, `ignore_eos`; one value for all rows or a list of one per row.
                Greedy unless said otherwise.

        Returns:
            The new text for a text, the new ids for ids; a list of them where a list of prompts was given.
        """
        rows, is_text, is_single = self._rows(prompts)
        params = self.params(rows, **sampling)
        if is_text:
            answers: list[Any] = generation.generate_text(
                self.runtime, rows, params, self.stop_token_ids, self.tokenizer.stream
            )
        elif any(row.stop for row in params):
            steps = list(self._steps_of(rows, params))
            answers = [[ids[row] for ids in steps if ids[row] is not None] for row in range(len(rows))]
        else:
            answers = generation.generate_ids(self.runtime, rows, params, self.stop_token_ids)
        return answers[0] if is_single else answers

    def stream(self, prompts: Prompts, **sampling: Any) -> Iterator[Any]:
        """Generates step by step.

        Args:
            prompts: as for `generate`.
            **sampling: as for `generate`, without beams.

        Returns:
            An iterator. For one text: pieces of text. For a list of texts: one list of pieces per step. For ids: one
            list per step with a row's id each. None stands for a row that has ended. Wrong arguments raise here.
        """
        rows, is_text, is_single = self._rows(prompts)
        params = self.params(rows, **sampling)
        if not is_text:
            return self._steps_of(rows, params)
        steps = generation.stream_text(self.runtime, rows, params, self.stop_token_ids, self.tokenizer.stream)
        return (step[0] for step in steps if step[0]) if is_single else steps

    def chat(self, messages: Sequence[Mapping[str, str]], *, stream: bool = False, **sampling: Any) -> Any:
        """Answers a conversation by the checkpoint's chat template.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": text}`, oldest first.
            stream: yield the answer in pieces instead of returning it.
            **sampling: as for `generate`.
        """
        ids = self.tokenizer.encode(self.tokenizer.apply_chat_template(list(messages)), add_special_tokens=False)
        params = self.params([ids], **sampling)
        if stream:
            steps = generation.stream_text(self.runtime, [ids], params, self.stop_token_ids, self.tokenizer.stream)
            return (step[0] for step in steps if step[0])
        return generation.generate_text(self.runtime, [ids], params, self.stop_token_ids, self.tokenizer.stream)[0]

    def _steps_of(self, rows: list[list[int]], params: list[generation.SamplingParams]) -> Iterator[list[int | None]]:
        """Ids step by step; stop strings show in the text alone, so rows that have some are detokenized too."""
        if not any(row.stop for row in params):
            return generation.generate_steps(self.runtime, rows, params, self.stop_token_ids)
        steps = generation.stream_text(self.runtime, rows, params, self.stop_token_ids, self.tokenizer.stream)
        return (list(steps.ids) for _ in steps)

    def params(self, rows: Sequence[Ids], **sampling: Any) -> list[generation.SamplingParams]:
        """Returns each row's sampling settings; without `max_new_tokens` a row may go on to `max_length`."""
        if sampling.get("max_new_tokens") is None:
            sampling["max_new_tokens"] = [max(1, self.runtime.max_length - len(row)) for row in rows]
        return generation.sampling_rows(len(rows), **sampling)

    def save(self, folder: str | Path) -> Path:
        """Writes the portable artefact, see `poptransformer.runtime.artefact`; `load` opens it."""
        return save_artefact(self.runtime.compiled, self.checkpoint, folder)

    # -- inside -------------------------------------------------------------------------------------------------

    def _rows(self, prompts: Prompts) -> tuple[list[list[int]], bool, bool]:
        """Returns the prompts as rows of ids, whether they were text, and whether it was a single one."""
        if isinstance(prompts, str):
            return [self.tokenizer.encode(prompts)], True, True
        try:
            items: list[Any] = list(prompts.tolist() if hasattr(prompts, "tolist") else prompts)  # arrays and tensors
            if items and all(isinstance(item, str) for item in items):
                return [self.tokenizer.encode(item) for item in items], True, False
            if items and all(isinstance(item, (int, np.integer)) for item in items):
                return [[int(item) for item in items]], False, True
            rows = [[operator.index(i) for i in item] for item in items]
        except TypeError as error:
            raise ConfigError(
                "prompts must be a text, a list of texts, a list of ids or a list of lists of ids, "
                f"found {reprlib.repr(prompts)}."
            ) from error
        if not rows:
            raise ConfigError("The list of prompts is empty; give at least one text or one list of ids.")
        return rows, False, False


def _integers(name: str, values: Any) -> np.ndarray:
    """Returns nested lists or an array of integers as int64."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ConfigError(f"{name} has rows of different lengths; pad them on the right and pass lengths.") from error
    if array.size and array.dtype.kind not in "iu":
        raise ConfigError(f"{name} must be integers, found {array.dtype}. Use engine.tokenizer.encode for text.")
    return array.astype(np.int64)


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
    if is_artefact(name_or_path):
        asked = {"precision": None if precision is None else build.recipe.text, "max_length": max_length}
        asked |= {"model_type": model_type, "fuse": fuse, "fp8_cache": fp8_cache, **(quantization or {})}
        return _load_saved(Path(name_or_path).expanduser().resolve(), asked, settings, distribution)
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
