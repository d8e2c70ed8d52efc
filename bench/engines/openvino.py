# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI, on models that optimum-cli exported."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.engines.job import Job

BATCH_TOKENS = 8192  # what a batch may hold in one step: more than any of ours


class Engine:
    def __init__(self, job: Job) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        self._path = Path(job.path)
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
        if job.variant == "fp32":  # by default it computes in bf16 where the processor can
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if job.batch > 1:
            schedule = openvino_genai.SchedulerConfig()
            schedule.max_num_seqs, schedule.max_num_batched_tokens, schedule.cache_size = job.batch, BATCH_TOKENS, 1
            settings["scheduler_config"] = schedule
        self._pipeline = openvino_genai.LLMPipeline(job.path, "CPU", **settings)

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        import numpy as np

        array = np.array(ids, dtype=np.int64)
        prompts = self._genai.TokenizedInputs(self._openvino.Tensor(array), self._openvino.Tensor(np.ones_like(array)))
        config = self._genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        return self._stream(prompts, config) if len(ids) == 1 else self._generate(prompts, config, count)

    def _stream(self, prompts: Any, config: Any) -> tuple[list[float], list[int]]:
        times: list[float] = []
        tokens: list[int] = []
        running = self._genai.StreamingStatus.RUNNING

        class Streamer(self._genai.StreamerBase):  # type: ignore[name-defined]
            def write(self, token: Any) -> Any:
                for each in token if isinstance(token, (list, tuple)) else [token]:
                    tokens.append(int(each))
                    times.append(time.perf_counter())
                return running

            def end(self) -> None:
                pass

        self._pipeline.generate(prompts, config, Streamer())
        return times, tokens

    def _generate(self, prompts: Any, config: Any, count: int) -> tuple[list[float], list[int]]:
        """A batch has no streamer: the time of its first token is what the pipeline itself says."""
        begin = time.perf_counter()
        answer = self._pipeline.generate(prompts, config)
        end = time.perf_counter()
        first = begin + answer.perf_metrics.get_ttft().mean / 1e3
        step = (end - first) / max(count - 1, 1)
        return [first + i * step for i in range(count)], list(answer.tokens[0])

    def weight_bytes(self) -> int:
        return (self._path / "openvino_model.bin").stat().st_size

    def version(self) -> str:
        return str(self._genai.__version__)


def load(job: Job) -> Engine:
    return Engine(job)
