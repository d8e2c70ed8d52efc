# SPDX-License-Identifier: Apache-2.0
"""Quantizes a built model as its recipe says, and reports what became of the weights."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from poptransformer import passes
from poptransformer.checkpoint import release
from poptransformer.quantization_report import QuantizationReport
from poptransformer.utils.progress import progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from poptransformer.models.base_model import HFModel

logger = logging.getLogger(__name__)
# Its info lines are shown at log level `warning` too.
totals = logging.getLogger("poptransformer.report.quantization")


def quantize(compiled: ir.Model, model: HFModel) -> QuantizationReport:
    """Stores the weights of a graph as the recipe of its model's build says.

    Args:
        compiled: the graph to change; products with weights must already be `Linear`.
        model: the model that it was built by.
    """
    recipe = model.build.recipe
    if recipe.is_float:
        return passes.quantize(compiled, recipe)
    with progress("quantizing") as advance:

        def done(array: np.ndarray) -> None:
            release(array)
            advance(1)

        report = passes.quantize(compiled, recipe, done=done)
    logger.info("%s", report)
    totals.info(report.summary)
    return report
