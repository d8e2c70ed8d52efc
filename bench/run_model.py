# SPDX-License-Identifier: Apache-2.0
"""One measured run in a process of its own: loads a model, does one thing, prints a JSON object.

Started by the benchmarks of this folder: python -m bench.run_model '{"model": ..., "action": ...}'
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

from bench.phases import Phases, memory

PROMPT = "The history of the castle begins with"
IDS = [11, 205, 7, 3190, 42, 999, 512, 77]  # where there is no tokenizer


def main() -> None:
    job: dict[str, Any] = json.loads(sys.argv[1])
    # CLOCK_MONOTONIC is the same for all processes, so this is the time since the parent started us.
    started = job.get("started", time.monotonic())
    phases = Phases()
    phases.found["start python"] = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time()}
    with phases.phase("import"):
        import poptransformer.engine
        from poptransformer.runtime import artefact, compiled
    if artefact.is_artefact(job["model"]):  # needs nothing that builds graphs
        phases.wrap(artefact, "load_artefact", "open")
    else:
        with phases.phase("import"):
            from poptransformer.checkpoint import open as opening
            from poptransformer.models.hf_model import HFModel
        phases.wrap(HFModel, "build_graph", "build graph")
        phases.wrap(opening, "open_checkpoint", "open")
        phases.wrap(compiled, "compile_model", "passes")
    with phases.phase("load (total)"):
        engine = poptransformer.load(job["model"], precision=job.get("precision"), threads=job.get("threads"))
    result = {"stream": _stream, "generator": _generator, "save": _save}[job["action"]](engine, job, phases, started)
    print(json.dumps(result | {"phases": phases.found, "native": _is_native()} | memory()))


def _stream(engine: Any, job: dict[str, Any], phases: Phases, started: float) -> dict[str, Any]:
    """Generates step by step; returns the time to the first token and tokens per second after it."""
    with phases.phase("session"):
        _ = engine.runtime.step_session
    with phases.phase("sampler session"):
        _ = engine.runtime.sampler_session
    with phases.phase("tokenizer"):
        ids = engine.tokenizer.encode(PROMPT) if engine.checkpoint.has_tokenizer else _ids(engine)
    stream = engine.stream(ids, max_new_tokens=job["tokens"], ignore_eos=True)
    with phases.phase("first token"):
        next(stream)
    first = time.monotonic() - started
    times = [time.perf_counter()]
    with phases.phase("decode"):
        for _ in stream:
            times.append(time.perf_counter())
    steps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return {"first_token_seconds": first, "tokens_per_second": 1.0 / statistics.median(steps)}


def _generator(engine: Any, job: dict[str, Any], phases: Phases, started: float) -> dict[str, Any]:
    """Generates in one call of the generator graph."""
    with phases.phase("session"):
        _ = engine.runtime.generator_session
    rows = [_ids(engine)]
    params = engine.params(rows, max_new_tokens=job["tokens"], ignore_eos=True)
    begin = time.perf_counter()
    with phases.phase("generate"):
        (answer,) = engine.runtime.generate(rows, params, frozenset())
    return {"tokens_per_second": len(answer) / (time.perf_counter() - begin)}


def _ids(engine: Any) -> list[int]:
    """A prompt that the model's vocabulary has."""
    return [i % engine.runtime.vocab_size for i in IDS]


def _save(engine: Any, job: dict[str, Any], phases: Phases, started: float) -> dict[str, Any]:
    with phases.phase("save"):
        engine.save(job["output"])
    return {}


def _is_native() -> bool:
    from poptransformer import native

    return native.available()


if __name__ == "__main__":
    main()
