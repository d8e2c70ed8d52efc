# SPDX-License-Identifier: Apache-2.0
"""A conversation out of a configuration: its questions, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def turns(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what the model is asked, call by call.

    Args:
        inputs: the `inputs` group. Of a list of texts in `input_string`, each is a call of its own.
    """
    questions = inputs.get("input_string")
    if questions is None or isinstance(questions, str):
        yield dict(inputs)
        return
    for question in questions:
        yield {**inputs, "input_string": question}
