# SPDX-License-Identifier: Apache-2.0
"""From prompts to tokens: sampling settings, steps, stop strings and beam search, on top of any `Runtime`.

The names are imported when they are first used: a stream needs no beam search.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poptransformer.generation.beams import Hypothesis, beam_search
    from poptransformer.generation.complete import generate_ids, generate_text
    from poptransformer.generation.params import SamplingArrays, SamplingParams, arrays, sampling_rows
    from poptransformer.generation.prompts import check_prompts, right_padded, row_limits
    from poptransformer.generation.runtime import Rows, Runtime, StepRunner, TokenRunner, TokenRuntime
    from poptransformer.generation.stop import StopStringFilter
    from poptransformer.generation.stream import TokenSteps, generate_steps
    from poptransformer.generation.text import Detokenizer, RowText, TextSteps, stream_text

__all__ = [
    "Detokenizer",
    "Hypothesis",
    "RowText",
    "Rows",
    "Runtime",
    "SamplingArrays",
    "SamplingParams",
    "StepRunner",
    "StopStringFilter",
    "TextSteps",
    "TokenRunner",
    "TokenRuntime",
    "TokenSteps",
    "arrays",
    "beam_search",
    "check_prompts",
    "generate_ids",
    "generate_steps",
    "generate_text",
    "right_padded",
    "row_limits",
    "sampling_rows",
    "stream_text",
]

# No name is that of a module: the module, once imported, would hide it.
_MODULES = {
    "Detokenizer": "text",
    "Hypothesis": "beams",
    "RowText": "text",
    "Rows": "runtime",
    "Runtime": "runtime",
    "SamplingArrays": "params",
    "SamplingParams": "params",
    "StepRunner": "runtime",
    "StopStringFilter": "stop",
    "TextSteps": "text",
    "TokenRunner": "runtime",
    "TokenRuntime": "runtime",
    "TokenSteps": "stream",
    "arrays": "params",
    "beam_search": "beams",
    "check_prompts": "prompts",
    "generate_ids": "complete",
    "generate_steps": "stream",
    "generate_text": "complete",
    "right_padded": "prompts",
    "row_limits": "prompts",
    "sampling_rows": "params",
    "stream_text": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
