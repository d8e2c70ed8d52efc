# SPDX-License-Identifier: Apache-2.0
"""FusedLinear against numpy in float64: formats, norms, activations, shapes, threads, instruction sets, errors."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
FLOAT8 = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
FORMATS = [*FLOATS, "int4", "int4-offsets", "int8", *FLOAT8]
ACTIVATIONS = {
    "none": lambda x: x,
    "silu": lambda x: x / (1 + np.exp(np.minimum(-x, 700))),
    "gelu": lambda x: x / 2 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x / (1 + np.exp(np.minimum(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), 700))),
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
EPSILON = 1e-5


@dataclasses.dataclass
class Weight:
    """One projection's inputs, and the values that its codes stand for."""

    format: str  # as the op's attribute says it
    inputs: list[np.ndarray | None]  # weight, scales, offsets, bias
    values: np.ndarray  # float64 [N, K]

    @property
    def bias(self) -> np.ndarray | float:
        return 0.0 if self.inputs[3] is None else self.inputs[3]


def weight(format: str, N: int, K: int, *, bias: bool = True, block: int = 32, seed: int = 0) -> Weight:
    random = np.random.default_rng(seed)
    offset = random.standard_normal(N, np.float32) if bias else None
    if format in FLOATS:
        matrix = random.standard_normal((N, K), np.float32).astype(FLOATS[format])
        return Weight("float", [matrix, None, None, offset], matrix.astype(np.float64))
    name = format.removesuffix("-offsets")
    tiles, blocks = -(-N // 16), -(-K // block)
    rows = random.integers(0, 16 if name == "int4" else 256, (tiles * 16, blocks * block)).astype(np.uint8)
    scale_type = np.float32 if name in FLOAT8 else np.float16
    scales = random.uniform(0.001, 0.01, (tiles * 16, blocks)).astype(scale_type)
    offsets = random.standard_normal((tiles * 16, blocks)).astype(np.float16) if name != format else None
    if name in FLOAT8:
        values = rows.view(FLOAT8[name]).astype(np.float64)
        rows[~np.isfinite(values)] = 1
        values = rows.view(FLOAT8[name]).astype(np.float64)
    else:
        values = rows.astype(np.float64) - (0 if offsets is not None else {"int4": 8, "int8": 128}[name])
    values = values.reshape(len(rows), blocks, block) * scales[..., None]
    if offsets is not None:
        values += offsets[..., None]
    tiled = rows.reshape(tiles, 16, blocks * block // 32, 8, 4).transpose(0, 2, 3, 1, 4)
    codes = tiled[:, :, :4] | tiled[:, :, 4:] << 4 if name == "int4" else tiled
    by_tile = [None if a is None else a.reshape(tiles, 16, blocks).transpose(0, 2, 1).copy() for a in (scales, offsets)]
    return Weight(
        name, [np.ascontiguousarray(codes), *by_tile, offset], values.reshape(len(rows), blocks * block)[:N, :K]
    )


@dataclasses.dataclass
class Case:
    """A node, its inputs and what it should give."""

    x: np.ndarray
    weights: list[Weight]
    norm: str = "none"
    activation: str = "none"
    gated: int = 0
    residual: bool = False
    pieces: tuple[int, ...] | None = None  # columns of the only weight

    @functools.cached_property
    def head(self) -> list[np.ndarray | None]:
        """x, norm_weight, norm_bias, residual."""
        random = np.random.default_rng(5)
        K, N = self.x.shape[-1], self.columns[0]
        scale = None if self.norm == "none" else random.standard_normal(K, np.float32)
        shift = random.standard_normal(K, np.float32) if self.norm == "layer" else None
        added = random.standard_normal((*self.x.shape[:-1], N), np.float32) if self.residual else None
        return [self.x, scale, shift, added]

    @property
    def inputs(self) -> list[np.ndarray | None]:
        return [*self.head, *(array for weight in self.weights for array in weight.inputs)]

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "norm": self.norm,
            "epsilon": EPSILON,
            "activation": self.activation,
            "gated": self.gated,
            "formats": " ".join(weight.format for weight in self.weights),
            "columns": self.columns,
            "splits": [1] * len(self.weights) if self.pieces is None else [len(self.pieces)],
        }

    @property
    def columns(self) -> list[int]:
        return [len(weight.values) for weight in self.weights] if self.pieces is None else list(self.pieces)

    @property
    def outputs(self) -> int:
        return 1 if self.gated else len(self.columns)

    def rows(self) -> np.ndarray:
        """The rows that are multiplied, float64."""
        x = self.x.astype(np.float64)
        _, scale, shift, _ = self.head
        if self.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        if scale is not None:
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * scale
        return x if shift is None else x + shift

    def expected(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Outputs, and for each value how far the kernel may be off."""
        rows = self.rows()
        products = [rows @ weight.values.T + weight.bias for weight in self.weights]
        errors = [slack(rows, weight) for weight in self.weights]
        if self.pieces is not None:
            ends = np.cumsum(self.pieces)[:-1]
            products, errors = np.split(products[0], ends, -1), np.split(errors[0], ends, -1)
        if self.gated == 2:
            products, errors = products[::-1], errors[::-1]
        function = ACTIVATIONS[self.activation]
        if self.activation != "none":
            errors[0] = 1.2 * errors[0] + 2e-6 * np.abs(function(products[0]))  # no slope is above 1.13
            products[0] = function(products[0])
        if self.gated:
            error = errors[0] * (np.abs(products[1]) + errors[1]) + errors[1] * np.abs(products[0])
            products, errors = [products[0] * products[1]], [error]
        if self.residual:
            products[0] = products[0] + self.head[3]
        return products, [error + 1e-6 * (1 + np.abs(y)) for y, error in zip(products, errors, strict=True)]


def slack(rows: np.ndarray, weight: Weight) -> np.ndarray:
    """Rounding of fp32 sums; for integer weights that of the rows to int8 too: half a step of each 32 columns."""
    magnitude = np.abs(rows) @ np.abs(weight.values).T
    if weight.format not in ("int4", "int8"):
        return 2e-6 * magnitude
    padded = np.zeros((*rows.shape[:-1], -(-rows.shape[-1] // 32) * 32))
    padded[..., : rows.shape[-1]] = rows
    blocks = padded.reshape(*rows.shape[:-1], padded.shape[-1] // 32, 32)
    steps = np.repeat(np.abs(blocks).max(-1, keepdims=True) / 127 * 0.5001, 32, -1).reshape(padded.shape)
    return steps[..., : rows.shape[-1]] @ np.abs(weight.values).T + 4e-6 * magnitude


def run(
    kernels: Any, case: Case, constant: bool = False, inputs: list[np.ndarray | None] | None = None, **attributes: Any
) -> list[np.ndarray]:
    """The node's outputs; with `constant` all inputs but x and the residual are initializers."""
    fixed = set(range(16)) - {0, 3} if constant else set()
    outputs = [TensorProto.FLOAT] * case.outputs
    attributes = case.attributes | attributes
    return kernels.run("FusedLinear", inputs or case.inputs, outputs, constant=fixed, **attributes)


def check(kernels: Any, case: Case, constant: bool = False) -> None:
    for y, expected, error in zip(run(kernels, case, constant), *case.expected(), strict=True):
        assert y.shape == expected.shape and y.dtype == np.float32
        assert (np.abs(y - expected) <= error).all(), np.abs((y - expected) / error).max()


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 30])
def test_queries_keys_and_values(kernels, rows, format, norm):
    weights = [weight(format, N, 75, seed=N, bias=N != 16) for N in (48, 16, 33)]
    check(kernels, Case(draw(rows, 75), weights, norm), constant=rows == 3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [0, 1, 2])
@pytest.mark.parametrize(("rows", "K", "N"), [(1, 40, 100), (2, 96, 48), (33, 64, 200)])
def test_activations_gates_and_residuals(kernels, rows, K, N, gated, activation):
    weights = [weight("fp32", N, K, seed=i, bias=i == gated % 2) for i in range(2 if gated else 1)]
    for residual in (False, True):
        check(kernels, Case(draw(rows, K), weights, "rms", activation, gated, residual))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "block"), [(1, 64), (5, 128), (30, 32)])
def test_gates_and_residuals_of_all_formats(kernels, rows, block, format):
    weights = [weight(format, 50, 200, block=block, seed=i, bias=i == 0) for i in range(2)]
    check(kernels, Case(draw(rows, 200), weights, "rms", "silu", 1))
    check(kernels, Case(draw(rows, 200), weights[:1], residual=True), constant=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 40])
def test_one_weight_for_several_outputs(kernels, rows, format):
    whole = weight(format, 16 + 48 + 21, 70)
    check(kernels, Case(draw(rows, 70), [whole], "layer", pieces=(16, 48, 21)))
    pair = weight(format, 96, 70)
    for gated in (1, 2):
        check(kernels, Case(draw(rows, 70), [pair], "rms", "gelu", gated, pieces=(48, 48)), constant=True)


def test_pieces_of_a_float_weight_may_begin_anywhere(kernels):
    check(kernels, Case(draw(3, 20), [weight("fp16", 40, 20)], pieces=(7, 1, 32)))


@pytest.mark.parametrize("rows", [1, 3, 60])
def test_weights_of_different_formats_and_blocks(kernels, rows):
    formats = [("int4", 32), ("fp16", 32), ("int8", 128)]  # 96 and 128 padded columns
    weights = [weight(format, 40, 90, block=block, seed=i) for i, (format, block) in enumerate(formats)]
    check(kernels, Case(draw(rows, 90), weights, "rms"))
    check(kernels, Case(draw(rows, 90), weights[::2]))


# rows, K, N: row blocks of 512 and column blocks of 128 and their edges, more than one part for each, rows prepared by
# each part for itself (up to 8192 values) or by all together, nothing at all.
SHAPES = [(513, 33, 272), (1100, 8, 150), (1, 8192, 33), (1, 8193, 33), (16, 513, 33), (0, 8, 16), (3, 8, 0), (2, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_shapes(kernels, shape, format):
    rows, K, N = shape
    weights = [weight(format, N, K, seed=i) for i in range(2)]
    check(kernels, Case(draw(rows, K), weights, "layer", "tanh", 1, residual=True))
    check(kernels, Case(draw(rows, K), weights, "rms"))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 0), (1, 2, 1, 3)], ids=str)
def test_any_leading_dimensions(kernels, leading):
    check(kernels, Case(draw(*leading, 9), [weight("fp32", 5, 9)], "rms", residual=True))


@pytest.mark.parametrize("format", ["fp16", "int4", "e5m2"])
def test_threads_do_not_change_a_bit(kernels, format):
    for rows in (1, 3, 200):
        weights = [weight(format, N, 130, seed=N) for N in (160, 160, 48)]
        cases = [Case(draw(rows, 130), weights, "rms"), Case(draw(rows, 130), weights[:2], "rms", "silu", 1, True)]
        for case in cases:
            results = []
            for threads in (1, 2, 3, 5):
                kernels.threads(threads)
                results.append(run(kernels, case))
            for other in results[1:]:
                for y, first in zip(other, results[0], strict=True):
                    np.testing.assert_array_equal(y, first)


EDGES = np.array([0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 0.3, -0.3, 5, -5, 40, -40, 88, -88, 200, -200, np.inf, np.nan])


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_activations_are_accurate_everywhere(kernels, activation):
    """Relative to the result, in a product with 1; infinities and NaN as the formulas have them."""
    x = np.concatenate([EDGES, np.linspace(-12, 12, 20011), np.geomspace(1e-12, 1, 500)]).astype(np.float32)[:, None]
    one = Weight("float", [np.ones((1, 1), np.float32), None, None, None], np.ones((1, 1)))
    (y,) = run(kernels, Case(x, [one], activation=activation))
    with np.errstate(all="ignore"):
        expected = ACTIVATIONS[activation](x.astype(np.float64))
    finite = np.isfinite(expected)
    normal = finite & (np.abs(expected) > 1e-35)  # exponentials below fp32's normal numbers are 0
    error = np.abs(y[normal] - expected[normal]) / np.abs(expected[normal])
    assert np.median(error) < 1e-7 and error[np.abs(x[normal]) < 3].max() < 1e-6
    assert error.max() < 2e-5  # far on the left, gelu is the exponential of a large rounded number
    np.testing.assert_allclose(y[finite & ~normal], expected[finite & ~normal], rtol=0, atol=1e-35)
    assert np.isnan(y[np.isnan(x)]).all() and y[np.isposinf(x)] in (1, np.inf)


def test_non_finite_rows_stay_alone(kernels):
    x = draw(5, 40)
    x[1, 3], x[3, 7] = np.nan, np.inf
    for format in ("fp32", "int8"):
        weights = [weight(format, 33, 40, seed=i) for i in range(2)]
        (y,) = run(kernels, Case(x, weights, "rms", "silu", 1))
        assert np.isnan(y[[1, 3]]).all() and np.isfinite(y[[0, 2, 4]]).all()


def changed(case: Case, number: int, array: np.ndarray | None) -> list[np.ndarray | None]:
    return [array if i == number else value for i, value in enumerate(case.inputs)]


PLAIN = Case(draw(2, 40), [weight("fp32", 32, 40), weight("fp32", 32, 40)], "layer", "silu", 1, residual=True)
PACKED = Case(draw(2, 40), [weight("int4-offsets", 32, 40)])
ERRORS = [
    (PLAIN, 0, np.zeros((), np.float32), "input 'x' must be of rank 1 or more, found a scalar"),
    (PLAIN, 0, np.zeros((2, 41), np.float32), r"input 'norm_weight' must be \[41\], found \[40\]"),
    (PLAIN, 1, np.zeros((1, 40), np.float32), r"input 'norm_weight' must be \[K\], found \[1, 40\]"),
    (PLAIN, 1, None, "input 'norm_weight' must be given, found none"),
    (PLAIN, 2, np.zeros(39, np.float32), r"input 'norm_bias' must be \[40\], found \[39\]"),
    (PLAIN, 3, np.zeros((1, 32), np.float32), r"input 'residual' must be \[2, 32\], found \[1, 32\]"),
    (PLAIN, 4, np.zeros((33, 40), np.float32), r"input 'weight0' must be \[32, K\], found \[33, 40\]"),
    (PLAIN, 8, np.zeros((32, 41), np.float32), r"input 'weight1' must be \[32, 40\], found \[32, 41\]"),
    (PLAIN, 8, np.zeros((32, 40), np.uint8), "input 'weight1' must be float32 or float16 or bfloat16, found uint8"),
    (PLAIN, 8, None, "input 'weight1' must be given, found none"),
    (PLAIN, 7, np.zeros(31, np.float32), r"input 'bias0' must be \[32\], found \[31\]"),
    (PLAIN, 9, np.zeros(1, np.float16), r"input 'scales1' must be left out, as the weight is not packed, found \[1\]"),
    (PACKED, 0, np.zeros((2, 65), np.float32), r"input 'x' must be of 33 to 64 columns.*, found \[2, 65\]"),
    (PACKED, 0, np.zeros((2, 32), np.float32), r"input 'x' must be of 33 to 64 columns.*, found \[2, 32\]"),
    (PACKED, 4, np.zeros((2, 2, 8, 16, 4), np.uint8), r"'weight0' must be \[2, K / 32, 4, 16, 4\], found \[2, 2, 8"),
    (PACKED, 4, np.zeros((2, 2, 4, 16, 4), np.float32), "input 'weight0' must be uint8, found float32"),
    (PACKED, 5, None, "input 'scales0' must be given, as the weight is packed, found none"),
    (PACKED, 5, np.zeros((2, 2, 16), np.float32), "input 'scales0' must be float16, found float32"),
    (PACKED, 5, np.zeros((2, 3, 16), np.float16), r"'scales0' must be of a number of blocks that divides 2, found"),
    (PACKED, 6, np.zeros((2, 1, 16), np.float16), r"input 'offsets0' must be \[2, 2, 16\], found \[2, 1, 16\]"),
]


@pytest.mark.parametrize(("case", "number", "array", "message"), ERRORS, ids=[e[3][-40:] for e in ERRORS])
@pytest.mark.parametrize("constant", [False, True])
def test_errors_name_what_is_wrong(kernels, case, number, array, message, constant):
    """At the call, or for constant weights when the session is made."""
    with pytest.raises(Exception, match=f"poptransformer.FusedLinear.*{message}"):
        run(kernels, case, constant, changed(case, number, array))


ATTRIBUTE_ERRORS = [
    ({"norm": "group"}, "attribute 'norm' must be none, rms or layer, found group"),
    ({"activation": "mish"}, "attribute 'activation' must be none, silu, .*, found mish"),
    ({"gated": 3}, "attribute 'gated' must be 0, 1 or 2, found 3"),
    ({"columns": [32, 33]}, "attribute 'gated' must be 0 unless there are two projections of equal columns, found 1"),
    ({"columns": [32]}, "attribute 'columns' must be as many as splits adds up to, found 1"),
    ({"columns": [32] * 4}, "attribute 'columns' must be 3 or fewer, found 4"),
    ({"columns": [-1, -1]}, "attribute 'columns' must be 0 or more, found -1"),
    ({"splits": [1]}, "attribute 'splits' must be as many as there are formats, found 1"),
    ({"splits": [1, 0]}, "attribute 'splits' must be 1 or more, found 0"),
    ({"formats": ""}, "attribute 'formats' must be 1 to 3 words, found 0"),
    ({"formats": "float int3"}, "attribute 'formats' must be words out of float, int4, .*, found int3"),
    ({"formats": "int4", "splits": [2], "columns": [8, 8]}, "'columns' must be multiples of 16 where a packed weight"),
    (
        {"gated": 0},
        "attribute 'activation' must be none without a residual where there are several outputs, found silu",
    ),
]


@pytest.mark.parametrize(("attributes", "message"), ATTRIBUTE_ERRORS, ids=[str(e[0]) for e in ATTRIBUTE_ERRORS])
def test_wrong_attributes_are_refused_when_the_session_is_made(kernels, attributes, message):
    with pytest.raises(Exception, match=f"poptransformer.FusedLinear.*{message}"):
        run(kernels, PLAIN, **attributes)


@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_constant_weights_are_used_where_they_lie(kernels, format):
    case = Case(draw(1, 64), [weight(format, 32, 64, bias=False)])
    names = [f"in{i}" if array is not None else "" for i, array in enumerate(case.inputs)]
    node = helper.make_node("FusedLinear", names, ["y"], domain="poptransformer", **case.attributes)
    given = {name: array for name, array in zip(names, case.inputs, strict=True) if array is not None}
    x = {"in0": given.pop("in0")}
    session = kernels.session(node, x, {"y": TensorProto.FLOAT}, **given)
    (before,) = session.run(None, x)
    given["in4" if format == "fp16" else "in5"] *= 2  # weights, or scales; seen by the session: it holds no copy
    np.testing.assert_allclose(session.run(None, x)[0], 2 * before, rtol=1e-6)
