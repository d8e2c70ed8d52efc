# SPDX-License-Identifier: Apache-2.0
"""From prompts to tokens: sampling settings, steps, stop strings and beam search, on top of any `Runtime`."""

from poptransformer.generation.beam_search import Hypothesis, beam_search
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
