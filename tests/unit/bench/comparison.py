# SPDX-License-Identifier: Apache-2.0
"""A small comparison as `bench.compare` writes it, with figures that are easy to check."""

from __future__ import annotations

from typing import Any

SMOLLM2 = "smollm2-135m"
BITS = {"int4": 4, "q4_0": 4, "fp32": 32, "int8": 8}


def run(
    engine: str, variant: str, name: str, number: int, values: list[float], model: str = SMOLLM2, **rest: Any
) -> dict[str, Any]:
    """One measurement, as a worker prints it and `bench.compare` keeps it."""
    key = {"model": model, "set": name, "engine": engine, "variant": variant, "bits": BITS[variant], "round": number}
    facts = {"peak_bytes": 200_000_000, "weight_bytes": 80_000_000, "version": "1.0", "waits": [0.0]}
    return {**key, "values": values, **facts, **rest}


def comparison() -> dict[str, Any]:
    """Two rounds of decoding and cold starts; in the second the machine was half as quick."""
    runs = []
    for number, speed in enumerate((1.0, 0.5)):
        runs += [
            run("poptransformer", "int4", "decode", number, [400 * speed, 408 * speed], tokens=[1, 2, 9]),
            run("llama-cpp-python", "q4_0", "decode", number, [200 * speed], peak_bytes=250_000_000, tokens=[1, 2, 3]),
            run("onnxruntime-genai", "int4", "decode", number, [150 * speed], tokens=[5, 2, 3]),
            run("transformers", "fp32", "decode", number, [20 * speed], weight_bytes=500_000_000, tokens=[1, 2, 3]),
            run("poptransformer", "int4", "cold", number, [0.4 / speed], still_cached=0.0),
            run("llama-cpp-python", "q4_0", "cold", number, [0.5 / speed], still_cached=0.02),
        ]
    per_thread = {"read_gb_s": {"1": 30.0, "4": 40.0}, "fma_gflop_s": 200.0, "int8_gop_s": 800.0}
    machine = {
        "cpu": "a processor",
        "cores": 2,
        "load_average": 0.1,
        "python": "3.11",
        "versions": {"onnxruntime": "1"},
    }
    return {"machine": machine, "threads": 2, "limits": [{"threads": {"2": per_thread}}] * 2, "runs": runs}
