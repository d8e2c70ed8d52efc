# SPDX-License-Identifier: Apache-2.0
"""A `generation.Runtime` whose model is transformers' GPT-2 with random weights, and whose sampler is our op.

It recomputes whole rows at every step, so it cannot get a cache wrong, and refuses what a real one refuses:
tokens beyond the slots, and arrays of another type than the step graph takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from poptransformer import ops
from poptransformer.generation import SamplingArrays
from poptransformer.graph import Graph, onnx_function

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch on one thread: threads cost more than a model of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def tiny_gpt2(seed: int = 0, vocab_size: int = 61, max_length: int = 48) -> GPT2LMHeadModel:
    """A model whose logits have a standard deviation of about 2."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=max_length,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


@functools.cache
def sampler_session() -> ort.InferenceSession:
    """The `Sample` op alone, run by its function body."""
    graph = Graph("sampler")
    logits = graph.input("logits", ir.DataType.FLOAT, ["batch", "vocabulary"])
    history = graph.input("history", ir.DataType.INT64, ["batch", "tokens"])
    inputs = [
        graph.input(name, ir.DataType.FLOAT if name in FLOATS else ir.DataType.INT64, ["batch"])
        for name in (*SETTINGS, "step")
    ]
    token, probabilities = ops.sample(graph, logits, history, *inputs)
    graph.output(token, "token")
    graph.output(probabilities, "probabilities")
    model = ir.Model(graph.ir_graph, ir_version=11, functions=[onnx_function("Sample")])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)


def sample(
    logits: np.ndarray, history: np.ndarray, settings: SamplingArrays, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B]` and distributions `[B, V]`."""
    feeds = {name: getattr(settings, name) for name in SETTINGS}
    return tuple(sampler_session().run(None, {"logits": logits, "history": history, "step": step} | feeds))


class FakeRunner:
    def __init__(self, model: GPT2LMHeadModel, batch: int, slots: int, log: list[tuple[int, int]]) -> None:
        self._model = model
        self._rows: list[list[int]] = [[] for _ in range(batch)]
        self._slots = slots
        self._log = log

    def forward(self, input_ids: np.ndarray, lengths: np.ndarray, logit_positions: np.ndarray) -> ort.OrtValue:
        batch, count = input_ids.shape
        self._log.append((batch, count))
        if batch != len(self._rows) or not all(
            array.dtype == np.int64 for array in (input_ids, lengths, logit_positions)
        ):
            raise ValueError(f"{batch} rows for {len(self._rows)}, or not int64")
        past = np.array([len(row) for row in self._rows])
        if past.max() + count > self._slots:
            raise ValueError(f"{past} + {count} tokens do not fit into {self._slots} slots")
        whole = [row + new for row, new in zip(self._rows, input_ids.tolist(), strict=True)]
        # Right padding changes nothing before it: attention is causal.
        padded = torch.tensor([row + [0] * (max(map(len, whole)) - len(row)) for row in whole])
        with torch.no_grad(), one_thread():
            logits = self._model(padded).logits.numpy()
        self._rows = [row[: n + m] for row, n, m in zip(whole, past, lengths, strict=True)]
        chosen = np.take_along_axis(logits, (past[:, None] + logit_positions)[:, :, None], axis=1)
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(chosen))

    def reorder(self, rows: np.ndarray) -> None:
        self._rows = [list(self._rows[row]) for row in rows]


class FakeRuntime:
    """See the module.

    Attributes:
        calls: (rows, tokens per row) of every forward so far.
    """

    prompt_marks: tuple[tuple[int, ...], ...] = ()

    def __init__(self, model: GPT2LMHeadModel | None = None, max_length: int | None = None) -> None:
        self.model = model or tiny_gpt2()
        self.max_length = max_length or self.model.config.n_positions
        self.vocab_size = self.model.config.vocab_size
        self.calls: list[tuple[int, int]] = []

    def start(self, batch: int, slots: int) -> FakeRunner:
        if slots > self.max_length:
            raise ValueError(f"{slots} slots, but max_length is {self.max_length}")
        return FakeRunner(self.model, batch, slots, self.calls)

    def sample(
        self, logits: ort.OrtValue, history: np.ndarray, settings: SamplingArrays, step: np.ndarray
    ) -> np.ndarray:
        return sample(logits.numpy()[:, -1], history, settings, step)[0]
