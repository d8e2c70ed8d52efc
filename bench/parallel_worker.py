# SPDX-License-Identifier: Apache-2.0
"""One measured run of a parallel plan, in a process of its own or as one rank of several: see `bench.parallel`.

    python -m bench.parallel_worker JSON
    mpiexec -n 2 python -m mpi4py -m bench.parallel_worker JSON

The last line that it (or rank 0) prints is the result.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.quiet import raise_priority
from poptransformer.build import Build, use_build
from poptransformer.checkpoint import open_checkpoint
from poptransformer.engine import Engine
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.models import model_class_for
from poptransformer.ops import all_reduce
from poptransformer.parallel.communicator import Groups, ThreadGroup, use_own_pool
from poptransformer.passes import attach_functions
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.compiled import compile_replicas
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.ort_session import make_session
from poptransformer.runtime.threaded import ThreadedRuntime

CHAIN = 100  # sums in one graph, so that the call itself costs nothing
TIMEOUT = 120.0
# What divides the work: products with weights and attention to a share of the heads.
DIVIDED = ("FusedLinear", "Linear", "QuantizedLinear", "CachedAttention", "RotaryCachedAttention")


def world() -> Any:
    from poptransformer.parallel.mpi import world as mpi_world

    return mpi_world()


# ---- tokens --------------------------------------------------------------------------------------------------------


def load(job: dict[str, Any], profile: str | None = None) -> Engine:
    """The engine of a job; `threads` are those of one rank."""
    replicas, is_mpi = job["replicas"], job["distributed"] == "mpi"
    checkpoint = open_checkpoint(job["model"])
    build = Build(model_type="tp", num_replicas=replicas, precision=job["precision"])
    with use_build(build):
        model = model_class_for(checkpoint.config).from_checkpoint(checkpoint, max_length=256)
    threads = job["threads"] * (1 if is_mpi else replicas)
    compiled = compile_replicas(model, replicas=[world().rank] if is_mpi else None)
    distribution = Distribution(TIMEOUT, world=world() if is_mpi else None)
    return Engine(compiled, checkpoint, SessionSettings(threads=threads, profile_prefix=profile), distribution)


def groups_of(engine: Engine) -> list[Groups]:
    runtime = engine.runtime
    ranks = runtime.ranks if isinstance(runtime, ThreadedRuntime) else [runtime]
    return [rank.settings.groups for rank in ranks if rank.settings.groups is not None]


def tokens(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each token after a prompt, and how much of them the ranks waited for each other."""
    engine = load(job)
    random = np.random.default_rng(0)

    def answer() -> tuple[list[float], list[float]]:
        prompt = random.integers(0, engine.runtime.vocab_size, job["prompt"]).tolist()
        times, waits = [], []
        for _ in engine.stream(prompt, max_new_tokens=job["tokens"], ignore_eos=True):
            times.append(time.perf_counter())
            waits.append(statistics.mean([group.waited for group in groups_of(engine)] or [0.0]))
        return times, waits

    answer()
    times, waits = answer()
    steps = np.diff(times)
    return {
        "seconds": float(np.median(steps)),
        "mean_seconds": float(steps.mean()),
        "waited": (waits[-1] - waits[0]) / (times[-1] - times[0]),
    }


def divided(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds for each token of the nodes that replicas share out, on one rank, by onnxruntime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        engine = load(job, profile=str(Path(folder) / "profile"))
        list(engine.stream([1, 2, 3], max_new_tokens=job["tokens"], ignore_eos=True))
        (path,) = engine.runtime.end_profiling()
        events = json.loads(Path(path).read_text(encoding="utf-8"))
    steps = max(1, sum(event.get("name") == "model_run" for event in events))
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    shared = [e["dur"] for e in kernels if e["args"].get("op_name") in DIVIDED]
    whole = [e["dur"] for e in kernels]
    return {"divided": sum(shared) / steps / 1e6, "nodes": sum(whole) / steps / 1e6, "steps": steps}


# ---- latency -------------------------------------------------------------------------------------------------------


def chain(count: int, replicas: int) -> ir.Model:
    """`CHAIN` sums of `count` values, one after the other."""
    graph = Graph()
    value = graph.input("x", ir.DataType.FLOAT, [count])
    for _ in range(CHAIN):
        value = all_reduce(graph, value, replicas)
    graph.output(value, "y")
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION)
    attach_functions(model)
    return model


def time_chain(count: int, replicas: int, groups: Groups, repetitions: int) -> list[float]:
    session = make_session(chain(count, replicas), SessionSettings(threads=1, groups=groups))
    feeds = {"x": np.zeros(count, np.float32)}
    session.run(None, feeds)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        session.run(None, feeds)
        seconds.append((time.perf_counter() - start) / CHAIN)
    return seconds


def latency(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one sum, by bytes: median and 90th percentile."""
    result = {}
    for size in job["sizes"]:
        repetitions = 20 if size < 1 << 20 else 4
        if job["distributed"] == "mpi":
            groups = world().groups(job["replicas"], 1)
            seconds = time_chain(size // 4, job["replicas"], groups, repetitions)
        else:
            group = ThreadGroup(job["replicas"], TIMEOUT)

            def one(rank: int, size: int = size, group: ThreadGroup = group, times: int = repetitions) -> list[float]:
                use_own_pool()
                return time_chain(size // 4, job["replicas"], Groups(replicas=group.join(rank)), times)

            with ThreadPoolExecutor(job["replicas"]) as pool:
                seconds = next(iter(pool.map(one, range(job["replicas"]))))
        result[str(size)] = [float(np.median(seconds)), float(np.quantile(seconds, 0.9))]
    return result


def main() -> None:
    job = json.loads(sys.argv[1])
    raise_priority()  # once more: mpiexec puts its processes into sessions of their own
    result = {"tokens": tokens, "divided": divided, "latency": latency}[job["action"]](job)
    if job["distributed"] != "mpi" or world().rank == 0:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
