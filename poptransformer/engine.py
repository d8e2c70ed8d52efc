# SPDX-License-Identifier: Apache-2.0
"""What `poptransformer.load` returns: get logits, generate, stream, chat, save."""

from __future__ import annotations

import importlib
import operator
import reprlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poptransformer import generation
from poptransformer.errors import ConfigError
from poptransformer.quantization_report import QuantizationReport
from poptransformer.runtime.artefact import save_artefact
from poptransformer.runtime.compiled import CompiledModel, compile_replicas
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.open import open_runtime
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.runtime import Runtime

if TYPE_CHECKING:
    from poptransformer.checkpoint import Checkpoint, Tokenizer
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
        rows, is_text, is_single = self._rows(prompts, sampling)
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
        rows, is_text, is_single = self._rows(prompts, sampling)
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
        tokenizer = self._tokenizer_for(sampling)
        ids = tokenizer.encode(tokenizer.apply_chat_template(list(messages)), add_special_tokens=False)
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

    def make_ready_meanwhile(self, beams: bool) -> threading.Event | None:
        """Begins to open a saved model's session in a thread, see `Runtime.make_ready_meanwhile`.

        Nothing happens for other models: Python makes their sessions, or they are made by several ranks together.
        """
        if self.runtime.compiled.folder is not None and isinstance(self.runtime, Runtime):
            return self.runtime.make_ready_meanwhile(beams)
        return None

    # -- inside -------------------------------------------------------------------------------------------------

    def _tokenizer_for(self, sampling: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer, for what will be generated with these settings: while it loads, the session opens."""
        beams = sampling.get("num_beams") or 1
        if "tokenizer" not in vars(self.checkpoint) and isinstance(beams, int):
            graph_read = self.make_ready_meanwhile(beams > 1)
            if graph_read is not None:
                # Until then there is time to import what comes next: steps and texts, and what most tokenizers are of.
                _ = generation.stream_text
                importlib.import_module("tokenizers")
                graph_read.wait()
        return self.tokenizer

    def _rows(self, prompts: Prompts, sampling: Mapping[str, Any]) -> tuple[list[list[int]], bool, bool]:
        """Returns the prompts as rows of ids, whether they were text, and whether it was a single one."""
        if isinstance(prompts, str):
            return [self._tokenizer_for(sampling).encode(prompts)], True, True
        try:
            items: list[Any] = list(prompts.tolist() if hasattr(prompts, "tolist") else prompts)  # arrays and tensors
            if items and all(isinstance(item, str) for item in items):
                tokenizer = self._tokenizer_for(sampling)
                return [tokenizer.encode(item) for item in items], True, False
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
