# SPDX-License-Identifier: Apache-2.0
"""What this engine has to reach, as ratios to the best peer of the same run."""

from __future__ import annotations

import dataclasses

from bench.catalog import GPT2, LLAMA, SMOLLM2
from bench.summary import MEMORY


@dataclasses.dataclass(frozen=True)
class Bar:
    """One requirement.

    Attributes:
        model: the model.
        metric: one of `bench.summary.METRICS`.
        variant: our precision; None for whichever of ours is best.
        bits: peers whose weights have that many bits are compared; None for all.
        factor: the ratio to reach: at least, or at most for memory and seconds.
    """

    model: str
    metric: str
    variant: str | None
    bits: int | None
    factor: float


BARS = (
    Bar(SMOLLM2, "decode", "int4", 4, 1.9),
    Bar(SMOLLM2, "decode", "int8", 8, 1.8),
    Bar(SMOLLM2, "decode", "fp8_weight", 8, 1.4),
    Bar(SMOLLM2, "decode", "fp16", 16, 1.6),
    Bar(SMOLLM2, "decode", "fp32", 32, 1.2),
    Bar(SMOLLM2, "context", "int4", 4, 2.0),
    Bar(SMOLLM2, "prefill", None, None, 1.3),
    Bar(SMOLLM2, "batch8", "int4", 4, 1.5),
    Bar(SMOLLM2, MEMORY, "int4", 4, 1.0),
    Bar(SMOLLM2, "cold", "int4", 4, 1.0),
    Bar(LLAMA, "decode", "int4", 4, 1.5),
    Bar(LLAMA, "prefill", "int4", 4, 1.3),
    Bar(GPT2, "decode", "fp32", 32, 1.2),
    Bar(GPT2, "decode", "int4", 4, 1.7),
    Bar(GPT2, "prefill", None, None, 1.2),
)
# Decoding the large model has to reach this share of the bandwidth that 4 concurrent streams per thread read.
LLAMA_READ_SHARE, LLAMA_STREAMS = 0.8, 4
