# SPDX-License-Identifier: Apache-2.0
"""transformers on PyTorch."""

from __future__ import annotations

import os
import time
from typing import Any

from bench.engines.job import Job

TYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Engine:
    def __init__(self, job: Job) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        import torch
        import transformers

        torch.set_num_threads(job.threads)
        torch.set_grad_enabled(False)
        self._torch, self._transformers = torch, transformers
        dtype = getattr(torch, TYPES[job.variant])
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(job.path, dtype=dtype).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        torch, times = self._torch, []

        def note(tokens: Any, scores: Any, **rest: Any) -> Any:  # a criterion that never stops
            times.append(time.perf_counter())
            return torch.zeros(tokens.shape[0], dtype=torch.bool)

        prompts = torch.tensor(ids)
        answers = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            do_sample=False,
            stopping_criteria=self._transformers.StoppingCriteriaList([note]),
        )
        return times, answers[0, prompts.shape[1] :].tolist()

    def weight_bytes(self) -> int:
        tables = ("wpe.weight",) if self._model.config.tie_word_embeddings else ("wpe.weight", "embed_tokens.weight")
        matrices = [
            (name, weight) for name, weight in self._model.named_parameters() if weight.dim() == 2
        ]  # a tied head is listed once
        return int(sum(w.numel() * w.element_size() for name, w in matrices if not name.endswith(tables)))

    def version(self) -> str:
        return f"{self._transformers.__version__}, torch {self._torch.__version__}"


def load(job: Job) -> Engine:
    return Engine(job)
