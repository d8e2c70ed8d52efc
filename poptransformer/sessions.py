# SPDX-License-Identifier: Apache-2.0
"""`Session`: what the examples use. Compiles a model, runs it, streams it, and measures it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poptransformer import generation
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.runtime.cache import CompiledCache
from poptransformer.runtime.compiled import CompiledModel, compile_replicas
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.ort_session import SessionSettings
from poptransformer.runtime.profile import make_profile_folder, write_profile, write_table
from poptransformer.utils.progress import progress

if TYPE_CHECKING:
    from poptransformer.models.base_model import HFDecBaseModel, HFModel
    from poptransformer.parallel.mpi import World

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Performance:
    """Figures of the last run, from tokens that were really generated.

    Attributes:
        batch_size: rows.
        precision: storage precision of the weights.
        max_length: tokens of prompt and answer together.
        prompt_tokens: tokens of all prompts.
        new_tokens: generated tokens of all rows.
        decode_step: steps, the longest row's tokens.
        latency_ms: whole run, prefill included, in milliseconds.
        notes: lines to show beside them.
    """

    batch_size: int
    precision: str
    max_length: int
    prompt_tokens: int
    new_tokens: int
    decode_step: int
    latency_ms: float
    notes: tuple[str, ...] = ()

    @property
    def latency_per_token_ms(self) -> float:
        """Milliseconds per step."""
        return self.latency_ms / max(1, self.decode_step)

    @property
    def throughput(self) -> float:
        """Generated tokens of all rows per second."""
        return 1000.0 * self.new_tokens / self.latency_ms if self.latency_ms else 0.0


class Session:
    """Compiles and runs a model.

    The first five arguments steer PopART's compiler. onnxruntime has no such switches: they are kept in the compiled
    model's metadata for the IPU's cost model and change no result.

    Args:
        disable_outlining: keep repeated blocks as separate code.
        unstable_softmax: softmax without subtracting the maximum.
        disable_matmul_multi_stage_reduce: reduce partial products in one stage.
        constant_folding_of_multiple_consumers: fold constants with several consumers.
        use_loop_candidate_creator: outline by loops.
        execution_cache_name: folder for compiled models; a later start with the same configuration, checkpoint and
            versions opens what lies there. None compiles anew each time.
        profile_name: folder for a profile of the run; None takes none.
        threads: CPU threads; None uses every core this process may use.
        fuse: compute several nodes of the graph by one kernel; False runs the graph as the layers wrote it.
        distributed: what the ranks of a model of several replicas or stages are, `threads` or `mpi` processes.
        timeout_s: seconds that a rank of several waits for another one before all end with an error.
        log_severity: onnxruntime's log level, 0 verbose to 4 fatal.
    """

    def __init__(
        self,
        *,
        disable_outlining: bool = False,
        unstable_softmax: bool = False,
        disable_matmul_multi_stage_reduce: bool = False,
        constant_folding_of_multiple_consumers: bool = True,
        use_loop_candidate_creator: bool = False,
        execution_cache_name: str | None = None,
        profile_name: str | None = None,
        threads: int | None = None,
        fuse: bool = True,
        distributed: str = "threads",
        timeout_s: float = 300.0,
        log_severity: int = 3,
    ) -> None:
        self.compiler_options = {
            "disable_outlining": disable_outlining,
            "unstable_softmax": unstable_softmax,
            "disable_matmul_multi_stage_reduce": disable_matmul_multi_stage_reduce,
            "constant_folding_of_multiple_consumers": constant_folding_of_multiple_consumers,
            "use_loop_candidate_creator": use_loop_candidate_creator,
        }
        self.fuse = fuse
        self.distributed = distributed
        self.timeout_s = timeout_s
        self.cache: CompiledCache | None = None
        if execution_cache_name:
            self.cache = CompiledCache(Path(execution_cache_name), self.compiler_options, fuse)
        self.profile_folder = Path(profile_name).expanduser() if profile_name else None
        prefix = str(self.profile_folder / "onnxruntime") if self.profile_folder else None
        self.settings = SessionSettings(threads=threads, profile_prefix=prefix, log_severity=log_severity)
        self.anchor_arrays: dict[str, np.ndarray] = {}
        self.notes: list[Callable[[], Sequence[str]]] = []  # made when the performance is asked for
        self._performance: Performance | None = None
        self._model: HFDecBaseModel | None = None
        self._engine: Engine | None = None
        self._world: World | None = None

    def compile(self, model: HFDecBaseModel) -> None:
        """Compiles `model`, or opens it from the cache; builds its graph where that is still to be done."""
        logger.info("compiling")
        if self.profile_folder:
            make_profile_folder(self.profile_folder)
        distribution = self._distribution(model)
        replica = None
        if distribution.world is not None:
            from poptransformer.runtime.handshake import handshake_facts

            facts = handshake_facts(model, self.compiler_options, self.fuse)
            distribution.world.check_alike(facts, "configuration, checkpoint and versions")
            stages = len(model.build.layer_per_ipu or (0,))
            replica = distribution.world.place(model.build.num_replicas, stages)[1]

        def make(model: HFModel) -> CompiledModel:
            return compile_replicas(
                model, self.compiler_options, self.fuse, replicas=None if replica is None else [replica]
            )

        compiled = self.cache.get(model, make, replica) if self.cache else make(model)
        self._model = model
        self._world = distribution.world
        self._engine = Engine(compiled, model.checkpoint, self.settings, distribution)
        self._engine.make_ready_meanwhile(beams=model.sampling["num_beams"] > 1)
        if self.profile_folder and compiled.info.report.packed:
            write_table(self.profile_folder / "quantization.txt", f"{compiled.info.report}\n")
        logger.info("compiled")

    @property
    def engine(self) -> Engine:
        """The compiled model behind this session."""
        if self._engine is None:
            raise PopTransformerError("This session has no model yet; call session.compile(model) first.")
        return self._engine

    @property
    def model(self) -> HFDecBaseModel:
        """The model that was compiled."""
        if self._model is None:
            raise PopTransformerError("This session has no model yet; call session.compile(model) first.")
        return self._model

    def run(self, input_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Generates the answers of all rows, batch by batch.

        Args:
            input_dict: `input_ids` int64 `[B, L]` and `lengths` int64 `[B]`, from `model.build_input_dict`.

        Returns:
            `anchor_arrays`: `output_ids` int64 `[B, T]`, `output_lengths` int64 `[B]`, `decode_step` int64 `[]`.
        """
        rows = self._rows(input_dict)
        self._check_inputs(rows)
        with progress("starting onnxruntime"):
            self.engine.runtime.make_ready(beams=self.model.sampling["num_beams"] > 1)
        with self._measured(rows) as answers:
            for batch in self._batches(rows):
                answers += self._generate(batch)
        self.anchor_arrays = _anchors(answers)
        return self.anchor_arrays

    def stream(self, input_dict: Mapping[str, Any]) -> Iterator[list[str]]:
        """Generates step by step, yielding one piece of text per row and step.

        A beam search knows its texts at its end only: they come in one step.
        """
        if self.model.sampling["num_beams"] > 1:
            yield self.model.build_output_dict(self.run(input_dict))["output_strings"]
            return
        rows = self._rows(input_dict)
        self._check_inputs(rows)
        with progress("starting onnxruntime"):
            self.engine.runtime.make_ready(beams=False)
        with self._measured(rows) as answers:
            for batch in self._batches(rows):
                before = len(answers)
                answers += [[] for _ in batch]
                steps = self._text_steps(batch)
                for pieces in steps:
                    _append(answers[before:], steps.ids)
                    yield ([""] * before + [piece or "" for piece in pieces] + [""] * (len(rows) - len(answers)))
        self.anchor_arrays = _anchors(answers)

    def performance(self) -> Performance:
        """Returns the figures of the last run."""
        if self._performance is None:
            raise PopTransformerError("Nothing has run yet; call session.run or use up session.stream first.")
        notes = tuple(line for note in self.notes for line in note())
        return dataclasses.replace(self._performance, notes=notes)

    def save(self, folder: str | Path) -> Path:
        """Writes the portable artefact, see `poptransformer.runtime.artefact`."""
        return self.engine.save(folder)

    # -- inside -------------------------------------------------------------------------------------------------

    def _distribution(self, model: HFModel) -> Distribution:
        build = model.build
        stages = len(build.layer_per_ipu or ())
        if build.enable_pipeline and stages < 2:
            raise ConfigError(
                "enable_pipeline is true, but the model has one stage. Name the blocks of each stage in "
                "model.layer_per_ipu, as in [6,6], or set global_args.enable_pipeline=false."
            )
        world = None
        if self.distributed == "mpi":
            from poptransformer.parallel.mpi import world as mpi_world

            world = mpi_world()
            world.waiter.timeout = self.timeout_s
        return Distribution(self.timeout_s, build.batch_size if build.enable_pipeline else None, world)

    def _check_inputs(self, rows: list[list[int]]) -> None:
        """All ranks must work on the same prompts with the same settings."""
        if self._world is not None:
            digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
            settings = self.model.sampling | {"max_loop": self.model.max_loop, "early_stop": self.model.early_stop}
            facts = {"inputs": digest, **{f"model.{name}": repr(value) for name, value in settings.items()}}
            self._world.check_alike(facts, "inputs")

    def _rows(self, input_dict: Mapping[str, Any]) -> list[list[int]]:
        return [
            ids[:length].tolist() for ids, length in zip(input_dict["input_ids"], input_dict["lengths"], strict=True)
        ]

    def _batches(self, rows: list[list[int]]) -> Iterator[list[list[int]]]:
        build = self.model.build
        # A pipeline takes the batches of a step together: they are what its stages work on at the same time.
        size = build.batch_size * (build.batch_per_step if build.enable_pipeline else 1)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _params(self, rows: list[list[int]]) -> list[generation.SamplingParams]:
        model = self.model
        return self.engine.params(
            rows, max_new_tokens=model.max_loop, ignore_eos=not model.early_stop, **model.sampling
        )

    def _generate(self, rows: list[list[int]]) -> list[list[int]]:
        params, engine = self._params(rows), self.engine
        if params[0].stop and params[0].num_beams == 1:
            return self._until_stop_strings(rows)
        return generation.generate_ids(engine.runtime, rows, params, engine.stop_token_ids)

    def _until_stop_strings(self, rows: list[list[int]]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in rows]
        steps = self._text_steps(rows)
        for _ in steps:
            _append(answers, steps.ids)
        return answers

    def _text_steps(self, rows: list[list[int]]) -> generation.TextSteps:
        engine = self.engine
        return generation.stream_text(
            engine.runtime, rows, self._params(rows), engine.stop_token_ids, engine.tokenizer.stream
        )

    @contextlib.contextmanager
    def _measured(self, rows: list[list[int]]) -> Iterator[list[list[int]]]:
        answers: list[list[int]] = []
        start = time.perf_counter()
        yield answers
        elapsed = time.perf_counter() - start
        info = self.engine.runtime.compiled.info
        self._performance = Performance(
            batch_size=len(rows),
            precision=info.precision,
            max_length=info.max_length,
            prompt_tokens=sum(map(len, rows)),
            new_tokens=sum(map(len, answers)),
            decode_step=max(map(len, answers), default=0),
            latency_ms=1000.0 * elapsed,
        )
        if self.profile_folder:
            write_profile(self.engine.runtime, self.profile_folder)


def _append(answers: list[list[int]], ids: list[int | None]) -> None:
    for answer, token in zip(answers, ids, strict=True):
        if token is not None:
            answer.append(token)


def _anchors(answers: list[list[int]]) -> dict[str, np.ndarray]:
    lengths = np.array([len(ids) for ids in answers], np.int64)
    ids = np.zeros((len(answers), lengths.max(initial=0)), np.int64)
    for row, answer in zip(ids, answers, strict=True):
        row[: len(answer)] = answer
    return {"output_ids": ids, "output_lengths": lengths, "decode_step": lengths.max(initial=0)}
