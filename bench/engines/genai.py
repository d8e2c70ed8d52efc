# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai, on models that its own builder made."""

from __future__ import annotations

import json
import time
from pathlib import Path

from bench.engines.job import Job


class Engine:
    def __init__(self, job: Job) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        self._path = Path(job.path)
        found = json.loads((self._path / "genai_config.json").read_text(encoding="utf-8"))
        config = genai.Config(job.path)
        # The last id of the vocabulary stands for the end of text, so that nothing else ends an answer.
        options = {"session_options": {"intra_op_num_threads": job.threads}}
        config.overlay(json.dumps({"model": {"eos_token_id": found["model"]["vocab_size"] - 1, "decoder": options}}))
        self._model = genai.Model(config)

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        import numpy as np

        length = len(ids[0])
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=length + count, min_length=0, batch_size=len(ids))
        generator = self._genai.Generator(self._model, params)
        prompts = np.array(ids, dtype=np.int32)
        generator.append_tokens(prompts if len(ids) > 1 else prompts[0])
        times = []
        for _ in range(count):
            generator.generate_next_token()
            generator.get_next_tokens()
            times.append(time.perf_counter())
        return times, [int(token) for token in generator.get_sequence(0)[length:]]

    def weight_bytes(self) -> int:
        from bench.engines.graph_bytes import weight_bytes

        return weight_bytes(self._path / "model.onnx")

    def version(self) -> str:
        from importlib.metadata import version

        return f"{version('onnxruntime-genai')}, onnxruntime {version('onnxruntime')}"


def load(job: Job) -> Engine:
    return Engine(job)
