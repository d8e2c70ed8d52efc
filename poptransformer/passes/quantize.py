# SPDX-License-Identifier: Apache-2.0
"""Stores each weight matrix as the recipe says."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from poptransformer.errors import ConfigError, nearest
from poptransformer.passes.matrices import Matrix, matrices
from poptransformer.passes.packed_nodes import Rounding, pack_matrix, round_activations, static_scale
from poptransformer.passes.precision import HALF, store_matrix
from poptransformer.quantization import (
    FORMATS,
    PER_CHANNEL,
    PER_TENSOR,
    ActivationStats,
    PackedWeight,
    WeightSpec,
    encode,
    encode_calibrated,
    packed_source,
)
from poptransformer.quantization_report import QuantizationReport, WeightReport
from poptransformer.recipe import EVERYTHING, Choice, Recipe

logger = logging.getLogger(__name__)

_AFTER_A_HEAD = ("Add", "Mul", "Div", "Identity", "AllGather", "Slice")


def calibrated_inputs(model: ir.Model, recipe: Recipe) -> list[str]:
    """Returns the names of the values whose statistics `quantize` will ask for, in the order of the weights."""
    names: dict[str, None] = {}
    for matrix in matrices(model.graph):
        _, choice = _rule(recipe, matrix)
        if matrix.products and (choice.rounds_by_outputs or choice.has_static_scales):
            names[_input_name(matrix)] = None
    return list(names)


def quantize(
    model: ir.Model,
    recipe: Recipe,
    activations: Mapping[str, ActivationStats] | None = None,
    done: Callable[[np.ndarray], None] = lambda array: None,
) -> QuantizationReport:
    """Stores each weight matrix in the precision of the first rule that matches its name.

    Vectors stay fp32. A matrix that is only looked up, never multiplied by, keeps 16 bits under the pattern `*`.

    Args:
        model: the model to change; products with weights must already be `Linear`.
        recipe: the rules. A matrix that none matches keeps the checkpoint's own type, as with `fp32`.
        activations: for a recipe that is calibrated, what is known about the values of `calibrated_inputs`.
        done: called with the checkpoint's array of each weight that has been dealt with.

    Raises:
        ConfigError: a pattern matches no matrix, or only ones that earlier patterns take.
    """
    graph = model.graph
    found = list(matrices(graph))
    rules = [_rule(recipe, matrix) for matrix in found]
    _check_patterns(recipe, found, {pattern for pattern, _ in rules})
    for precision in dict.fromkeys(choice.precision for _, choice in rules):
        if precision != "fp32":
            logger.info("casting model to %s", precision)
    reports: list[WeightReport] = []
    rounded: dict[ir.Node, Rounding] = {}
    for matrix, (pattern, choice) in zip(found, rules, strict=True):
        if _is_packed(matrix, pattern, choice):
            packed, is_original = _pack(matrix, choice, activations or {})
            reports.append(_report_packed(matrix, choice, packed, is_original))
            rounding = _rounding(matrix, choice, activations or {})
            products = pack_matrix(graph, matrix, packed)
            rounded |= dict.fromkeys(products, rounding) if rounding is not None else {}
        else:
            precision = _float_precision(matrix, choice)
            store_matrix(matrix, precision)
            reports.append(_report_float(matrix, choice, is_lazy=recipe.is_float))
        done(matrix.tensor.array)
    round_activations(graph, rounded)
    return QuantizationReport(tuple(reports))


def planned_choices(model: ir.Model, recipe: Recipe) -> dict[str, Choice]:
    """Returns what `quantize` would store each weight matrix as, without reading one.

    Args:
        model: as for `quantize`; it stays as it is.
        recipe: the rules.

    Returns:
        Initializer -> precision and details; for a matrix that stays a float, the float's precision.
    """
    found = {}
    for matrix in matrices(model.graph):
        pattern, choice = _rule(recipe, matrix)
        if not _is_packed(matrix, pattern, choice):
            choice = dataclasses.replace(choice, precision=_float_precision(matrix, choice))
        found[matrix.name] = choice
    return found


def _rule(recipe: Recipe, matrix: Matrix) -> tuple[str, Choice]:
    """The pattern that a matrix falls under, and what it gets."""
    pattern, choice = recipe.match(matrix.names) or ("", Choice("fp32"))
    if recipe.head is not None and any(_gives_output(node.outputs[0]) for node in matrix.products):
        return pattern, recipe.head
    return pattern, choice


def _gives_output(value: ir.Value) -> bool:
    """Whether a product is an output of the graph, but for a bias, a factor or other replicas' columns: the head."""
    if value.is_graph_output():
        return True
    return any(
        use.node.op_type in _AFTER_A_HEAD and _gives_output(use.node.outputs[0])
        for use in value.uses()
        if len(value.uses()) == 1
    )


def _is_packed(matrix: Matrix, pattern: str, choice: Choice) -> bool:
    if choice.is_float:
        return False
    if not matrix.can_be_packed:
        level = logging.INFO if pattern == EVERYTHING else logging.WARNING
        readers = ", ".join(sorted({node.op_type for node in matrix.others or matrix.lookups}))
        logger.log(
            level,
            "%s stays as it is, for it is read by %s; %s asks for %s",
            *(matrix.name, readers),
            pattern,
            choice.precision,
        )
        return False
    return bool(matrix.products) or pattern != EVERYTHING


def _float_precision(matrix: Matrix, choice: Choice) -> str:
    """The float type of a matrix that is not packed; a table gets 16 bits, those that the checkpoint has if any."""
    if choice.is_float:
        return choice.precision
    return "fp32" if matrix.tensor.array.dtype.itemsize == 2 or not matrix.can_be_packed else "fp16"


def weight_spec(choice: Choice) -> WeightSpec:
    """Returns how a weight of a packed precision is quantized."""
    details = choice.details
    if choice.precision == "int4":
        return WeightSpec("int4", details.int4_block, details.int4_symmetric, details.scale_method)
    if choice.precision == "int8":
        block = PER_CHANNEL if details.int8_block == "channel" else int(details.int8_block)
        return WeightSpec("int8", block, scale_method=details.scale_method)
    block = PER_CHANNEL if details.fp8_scale == "channel" else PER_TENSOR
    power_of_two = details.fp8_convention == "ipu"
    return WeightSpec(details.float8, block, scale_method=details.scale_method, power_of_two=power_of_two)


def _pack(matrix: Matrix, choice: Choice, activations: Mapping[str, ActivationStats]) -> tuple[PackedWeight, bool]:
    """Quantizes a weight; returns it, and whether it is what the checkpoint holds, of no more bits than asked."""
    array, spec = matrix.tensor.array, weight_spec(choice)
    source = packed_source(array)
    if source is not None and not spec.kind.is_float8 and FORMATS[source.format].bits <= spec.kind.bits:
        return source.load(), True
    stats = activations.get(_input_name(matrix)) if choice.rounds_by_outputs and matrix.products else None
    if stats is not None:
        return encode_calibrated(array, spec, stats, matrix.name), False
    return encode(array, spec, name=matrix.name), False


def _rounding(matrix: Matrix, choice: Choice, activations: Mapping[str, ActivationStats]) -> Rounding | None:
    """How the inputs of products with the weight are rounded, for precision `fp8`."""
    if choice.precision != "fp8":
        return None
    scaling = "power_of_two" if choice.details.fp8_convention == "ipu" else "amax"
    stats = activations.get(_input_name(matrix)) if choice.has_static_scales and matrix.products else None
    scale = None if stats is None else static_scale(stats.amax, choice.details.float8, scaling)
    return Rounding(choice.details.float8, scaling, scale)


def _input_name(matrix: Matrix) -> str:
    """The name of what the weight is multiplied by."""
    x = matrix.products[0].inputs[0]
    return "" if x is None else str(x.name)


def _report_packed(matrix: Matrix, choice: Choice, packed: PackedWeight, is_original: bool) -> WeightReport:
    is_tensor = packed.kind.is_float8 and choice.details.fp8_scale == "tensor"
    scales = f"block {packed.block}" if packed.block > 0 else "tensor" if is_tensor else "channel"
    offsets = " offsets" if packed.offsets is not None else ""
    origin = ", as in the checkpoint" if is_original else ""
    return WeightReport(
        matrix.name,
        (packed.columns, packed.depth),
        choice.precision,
        f"{packed.format} {scales}{offsets}{origin}",
        packed.nbytes,
        packed.error,
        packed.saturated,
    )


def _report_float(matrix: Matrix, choice: Choice, is_lazy: bool) -> WeightReport:
    """Reports a matrix of 16 or 32 bits; one that nothing has read so far is not read for the report."""
    array, dtype = matrix.tensor.array, (matrix.value.dtype or ir.DataType.FLOAT).numpy()
    rows, columns = array.shape
    name = next((name for name, half in HALF.items() if half == dtype), "fp32")
    is_exact = dtype in (array.dtype, np.float32)
    error = 0.0 if is_exact else None if is_lazy else _error(array, dtype)
    return WeightReport(matrix.name, (rows, columns), choice.precision, name, array.size * dtype.itemsize, error, 0)


def _error(array: np.ndarray, dtype: np.dtype) -> float:
    """Root of the mean squared change by rounding to a 16-bit float, relative to the root mean square."""
    values = np.asarray(array, np.float32)
    with np.errstate(over="ignore"):  # Reading the weight raises for what does not fit.
        change = np.square(values.astype(dtype).astype(np.float32) - values).sum(dtype=np.float64)
    return float(np.sqrt(change / max(np.square(values).sum(dtype=np.float64), 1e-30)))


def _check_patterns(recipe: Recipe, found: Sequence[Matrix], used: set[str]) -> None:
    """Raises for a pattern that changes nothing; `*` may stand for what is left, even if nothing is."""
    names = [name for matrix in found for name in matrix.names]
    for pattern, _ in recipe.rules:
        if pattern in used or pattern == EVERYTHING:
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"Earlier patterns of the recipe take every weight that {pattern} matches. Put {pattern} first, or "
                "leave it out."
            )
        raise ConfigError(f"No weight matches the pattern {pattern} of the recipe. {_nearest_names(pattern, names)}")


def _nearest_names(pattern: str, names: Sequence[str]) -> str:
    """Says which names, or which parts of names, come closest to a pattern."""
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    core = [part for part in pattern.split(".") if part.strip("*?") and part not in parts]
    close = nearest(pattern.strip("*."), names) + [
        near for part in core for near in nearest(part.strip("*?"), parts, 2)
    ]
    if close:
        return f"Nearest: {', '.join(dict.fromkeys(close))}."
    return f"Weights are called, for example, {', '.join(names[:3])}." if names else "The model has no weight matrices."
