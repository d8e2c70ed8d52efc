# SPDX-License-Identifier: Apache-2.0
"""Precisions of this engine that benchmarks know: what `poptransformer.load` is given for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.english import english
from bench.environments import MODELS_DIR

CALIBRATION_CHARACTERS = 200_000
# GPTQ rounds by a text: the end of the one whose beginning `bench.quality` measures.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "fp8_weight": {"precision": "fp8_weight"},
    "fp8": {"precision": "fp8"},
    "int4": {"precision": "int4"},
    "int4-gptq": {"precision": "int4", "quantization": {"calibration_method": "gptq"}},
}


def settings(name: str) -> dict[str, Any]:
    """Keyword arguments of `poptransformer.load`; the calibration text is written where one is needed."""
    found = dict(SETTINGS[name])
    if "quantization" in found:
        found["quantization"] = {**found["quantization"], "calibration_file": str(_calibration_file())}
    return found


def _calibration_file() -> Path:
    path = MODELS_DIR / "calibration.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(english()[-CALIBRATION_CHARACTERS:], encoding="utf-8")
    return path
