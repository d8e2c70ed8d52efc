# SPDX-License-Identifier: Apache-2.0
"""CTranslate2."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.engines.job import Job

COMPUTE_TYPES = {"fp32": "float32", "int8": "int8_float32"}


class Engine:
    def __init__(self, job: Job) -> None:
        import ctranslate2

        self._path = Path(job.path)
        self._generator = ctranslate2.Generator(
            job.path,
            device="cpu",
            compute_type=COMPUTE_TYPES[job.variant],
            inter_threads=1,
            intra_threads=job.threads,
        )
        self._tokens: list[str] = json.loads((self._path / "vocabulary.json").read_text(encoding="utf-8"))
        self._ids = {token: i for i, token in enumerate(self._tokens)}

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        times: list[float] = []

        def note(step: Any) -> bool:  # called for each row of each step; a step's last row counts
            times[step.step :] = [time.perf_counter()]
            return False

        answers = self._generator.generate_batch(
            [[self._tokens[token] for token in row] for row in ids],
            max_length=count,
            min_length=count,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )
        return times, [self._ids[token] for token in answers[0].sequences[0]]

    def weight_bytes(self) -> int:
        return (self._path / "model.bin").stat().st_size

    def version(self) -> str:
        import ctranslate2

        return str(ctranslate2.__version__)


def load(job: Job) -> Engine:
    return Engine(job)
