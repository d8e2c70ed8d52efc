# SPDX-License-Identifier: Apache-2.0
"""llama.cpp, through the low-level API of llama-cpp-python: its `Llama` class spends time of its own on each token."""

from __future__ import annotations

import ctypes
import time
from typing import Any

from bench.engines.job import Job

GRANULE = 256  # llama.cpp rounds the slots of a cache up to this
BATCH = 512  # tokens per call: llama.cpp's own default


class Engine:
    def __init__(self, job: Job) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._path = job.path
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(job.path.encode(), options)
        if not model:
            raise SystemExit(f"llama.cpp cannot load {job.path}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = -(-job.slots // GRANULE) * GRANULE * job.batch
        settings.n_batch = max(BATCH, job.length * job.batch)
        settings.n_seq_max = job.batch
        settings.n_threads = settings.n_threads_batch = job.threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)

    def generate(
        self, ids: list[list[int]], count: int, texts: list[str] | None = None
    ) -> tuple[list[float], list[int]]:
        self._api.llama_memory_clear(self._memory, True)
        length, rows = len(ids[0]), range(len(ids))
        self._run([(token, i, row, i == length - 1) for row in rows for i, token in enumerate(ids[row])])
        tokens = [self._best(row * length + length - 1) for row in rows]
        times, answer = [time.perf_counter()], [tokens[0]]
        for position in range(length, length + count - 1):
            self._run([(tokens[row], position, row, True) for row in rows])
            tokens = [self._best(row) for row in rows]
            answer.append(tokens[0])
            times.append(time.perf_counter())
        return times, answer

    def _run(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Runs tokens, each with its position, its row and whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(items)
        for i, (token, position, row, is_last) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, is_last
            batch.seq_id[i][0] = row
        if self._api.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")

    def _best(self, index: int) -> int:
        import numpy as np

        logits = self._api.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())

    def weight_bytes(self) -> int:
        import gguf

        tensors = [tensor for tensor in gguf.GGUFReader(self._path).tensors if len(tensor.shape) == 2]
        tables = {"position_embd.weight"}
        if any(tensor.name == "output.weight" for tensor in tensors):  # else the head is the embedding
            tables.add("token_embd.weight")
        return int(sum(tensor.n_bytes for tensor in tensors if tensor.name not in tables))

    def version(self) -> str:
        from importlib.metadata import version

        return str(version("llama-cpp-python"))


def load(job: Job) -> Engine:
    return Engine(job)
