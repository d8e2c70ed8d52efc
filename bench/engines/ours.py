# SPDX-License-Identifier: Apache-2.0
"""This engine, through its public API: text in and out where the prompts are text, sampling and streaming included."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

from bench.engines.job import Job


class Engine:
    def __init__(self, job: Job) -> None:
        import poptransformer

        self._path = Path(job.path)
        self._engine = poptransformer.load(job.path, threads=job.threads)

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        times: list[float] = []
        steps = []
        for step in self._engine.stream(texts or ids, max_new_tokens=count, ignore_eos=True):
            times.append(time.perf_counter())
            steps.append(step)
        return times, [] if texts else [step[0] for step in steps]

    def weight_bytes(self) -> int:
        from bench.engines.graph_bytes import weight_bytes

        return weight_bytes(self._path / "model.onnx")

    def version(self) -> str:
        import poptransformer
        from poptransformer import native

        kernels = "" if native.available() else " WITHOUT KERNELS (make)"
        return f"{poptransformer.__version__}{kernels}, onnxruntime {version('onnxruntime')}"


def load(job: Job) -> Engine:
    return Engine(job)
