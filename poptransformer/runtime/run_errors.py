# SPDX-License-Identifier: Apache-2.0
"""onnxruntime's errors of a run, in words for whoever did not write the graph."""

from __future__ import annotations

from poptransformer.errors import LogitsError

_BAD_LOGITS = "input 'logits' must hold no NaN"


def raise_in_words(error: Exception) -> None:
    """Raises a sentence where the model's numbers are at fault; does nothing about other errors.

    Raises:
        LogitsError: the largest logit of a row is not finite.
    """
    if _BAD_LOGITS in str(error):
        raise LogitsError(str(error).rpartition("found ")[2].strip()) from error
