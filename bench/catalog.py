# SPDX-License-Identifier: Apache-2.0
"""What is compared: models, engines with their variants, and the sets of measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

MODELS = ("smollm2-135m", "gpt2-124m", "llama-1.1b")  # names of `bench.shapes.CONFIGS`
SMOLLM2, GPT2, LLAMA = MODELS
OURS = "poptransformer"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One precision of an engine.

    Attributes:
        name: the engine's own name of it.
        bits: 4, 8, 16 or 32: variants of the same number are compared with each other.
        models: models that it is measured on.
    """

    name: str
    bits: int
    models: tuple[str, ...] = MODELS


@dataclasses.dataclass(frozen=True)
class Engine:
    """An inference engine.

    Attributes:
        name: its package on PyPI, and the name of its virtual environment.
        module: its adapter, a module of `bench.engines`.
        packages: what has to be importable where it runs.
        variants: what is measured.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    variants: tuple[Variant, ...]


SMALL = (SMOLLM2, GPT2)
LLAMAS = (SMOLLM2, LLAMA)

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            OURS,
            "ours",
            ("poptransformer",),
            (
                Variant("int4", 4),
                Variant("int8", 8),
                Variant("fp8_weight", 8),
                Variant("fp16", 16),
                Variant("fp32", 32, SMALL),
            ),
        ),
        Engine(
            "llama-cpp-python",
            "llama",
            ("llama_cpp",),
            (
                Variant("q4_0-pure", 4),  # q4_0 keeps the head in more bits
                Variant("q4_0", 4),
                Variant("q8_0", 8),
                Variant("f16", 16),
                Variant("bf16", 16, SMALL),
                Variant("f32", 32, SMALL),
            ),
        ),
        Engine(
            "onnxruntime-genai",  # its builder refuses GPT-2
            "genai",
            ("onnxruntime_genai",),
            (Variant("int4", 4, LLAMAS), Variant("int8", 8, LLAMAS), Variant("fp32", 32, (SMOLLM2,))),
        ),
        Engine(
            "openvino-genai",
            "openvino",
            ("openvino_genai",),
            (Variant("int4", 4), Variant("int8", 8, SMALL), Variant("fp16", 16, SMALL), Variant("fp32", 32, SMALL)),
        ),
        Engine(
            "ctranslate2",
            "ct2",
            ("ctranslate2",),
            (Variant("int8", 8), Variant("fp32", 32, SMALL)),
        ),
        Engine(
            "transformers",
            "hf",
            ("transformers", "torch"),
            # PyTorch has no quick bf16 product for GPT-2's transposed weights where AVX-512 is missing.
            (Variant("bf16", 16, LLAMAS), Variant("fp32", 32, SMALL)),
        ),
    )
}
PEERS = tuple(name for name in ENGINES if name != OURS)


@dataclasses.dataclass(frozen=True)
class Set:
    """One measurement.

    Attributes:
        title: what tables call it.
        kind: see `bench.engines.job.Job`.
        batch: rows.
        prompt: tokens of each prompt.
        count: tokens generated for each row.
        repetitions: measured repetitions of each process.
        lower_is_better: seconds rather than tokens per second.
    """

    title: str
    kind: str
    batch: int = 1
    prompt: int = 32
    count: int = 1
    repetitions: int = 1
    lower_is_better: bool = False

    def fitted(self, model: str, positions: int) -> Set:
        """The same for a model: within its positions, and with less repetition where the model is large."""
        count = min(self.count, positions - self.prompt)
        if model == LLAMA:
            return dataclasses.replace(self, count=min(count, 48), repetitions=1)
        return dataclasses.replace(self, count=count)


SETS: Mapping[str, Set] = {
    "decode": Set("decode tok/s", "decode", count=128, repetitions=2),
    "context": Set("at context 1000", "decode", prompt=1000, count=64),
    "batch8": Set("batch 8, total", "decode", batch=8, count=128),
    "prefill": Set("prefill 512 tok/s", "prefill", prompt=512, repetitions=2),
    "cold": Set("cold first token s", "first_token", lower_is_better=True),
}
