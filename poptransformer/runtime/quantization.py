# SPDX-License-Identifier: Apache-2.0
"""Quantizes a built model as its recipe says, and reports what became of the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from poptransformer import passes
from poptransformer.checkpoint import release
from poptransformer.passes.quantize import calibrated_inputs
from poptransformer.quantization import ActivationStats
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
    names = calibrated_inputs(compiled, recipe)
    activations = _activations(compiled, model, names) if names else None
    with progress("quantizing") as advance:

        def done(array: np.ndarray) -> None:
            release(array)
            advance(1)

        report = passes.quantize(compiled, recipe, activations, done)
    logger.info("%s", report)
    totals.info(report.summary)
    return report


def _activations(compiled: ir.Model, model: HFModel, names: list[str]) -> Mapping[str, ActivationStats]:
    """What the recipe's text shows about the inputs of products."""
    from poptransformer.runtime.activations import Activations, calibration_windows

    recipe = model.build.recipe
    hessians = any(choice.rounds_by_outputs for _, choice in recipe.rules)
    windows = calibration_windows(model, recipe.details)
    logger.info("calibrating with %d tokens of %s", sum(map(np.size, windows)), recipe.details.calibration_file)
    return Activations(compiled, names, model.states, windows, hessians)
