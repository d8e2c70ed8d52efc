# SPDX-License-Identifier: Apache-2.0
"""Ops over packed weights, and the rounding of activations to 8-bit floats.

A weight `[N, K]` is packed as `codes`, `scales` and, for int4 with offsets, `offsets`. Rows are padded to Nt tiles of
16, columns to Kt chunks of 32; Kb blocks of columns share a scale:

    codes    uint8  8 bits [Nt, Kt, 8, 16, 4]  [t, c, j, r, i] is row 16t + r, column 32c + 4j + i
                    int4   [Nt, Kt, 4, 16, 4]  low nibbles are column 32c + 4j + i, high ones 16 columns further
    scales   fp16 for int4 and int8, fp32 for fp8, [Nt, Kb, 16]
    offsets  fp16 [Nt, Kb, 16]

Values: int4 `(code - 8) * scale`, or `code * scale + offset`; int8 `(code - 128) * scale`; fp8 `decode(code) * scale`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function

INT = ir.AttributeType.INT
STRING = ir.AttributeType.STRING
_FLOAT32 = int(ir.DataType.FLOAT)
_FLOAT64 = int(ir.DataType.DOUBLE)
_INT32 = int(ir.DataType.INT32)

FLOAT8 = {
    "e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "e5m2": ir.DataType.FLOAT8E5M2,
    "e4m3fnuz": ir.DataType.FLOAT8E4M3FNUZ,
    "e5m2fnuz": ir.DataType.FLOAT8E5M2FNUZ,
}
FLOAT8_MAX = {"e4m3fn": 448.0, "e5m2": 57344.0, "e4m3fnuz": 240.0, "e5m2fnuz": 57344.0}
FORMATS = ("int4", "int8", *FLOAT8)
SCALINGS = ("amax", "power_of_two")
_ZERO_CODE = {"int4": 8.0, "int8": 128.0}


def _int_attribute(op: Any, name: str) -> Any:
    """The attribute's value as a tensor `[1]`."""
    return op.Unsqueeze(op.Constant(value_int=ir.RefAttr("value_int", name, INT)), [0])


def _values(op: Any, codes: Any, format: str, is_offset: bool, axis: int) -> Any:
    """Decodes codes to fp32, without scales; int4's pairs come apart along `axis`, which becomes 8 long."""
    if format in FLOAT8:
        table = np.arange(256, dtype=np.uint8).view(FLOAT8[format].numpy()).astype(np.float32)
        return op.Gather(op.Constant(value=ir.tensor(table)), op.Cast(codes, to=_INT32))
    if format == "int4":
        codes = op.Concat(op.BitwiseAnd(codes, 15), op.BitShift(codes, 4, direction="RIGHT"), axis=axis)
    values = op.Cast(codes, to=_FLOAT32)
    return values if is_offset else op.Sub(values, _ZERO_CODE[format])


def _scaled(op: Any, values: Any, scales: Any, offsets: Any) -> Any:
    """Applies `[R, Kb]` scales and offsets to the values of R rows `[R, Kt, 8, 4]`; returns `[R, padded K]`."""
    rows, blocks = op.Shape(values, start=0, end=1), op.Shape(scales, start=1, end=2)
    columns = op.Mul(op.Shape(values, start=1, end=2), 32)
    blockwise = op.Reshape(values, op.Concat(rows, blocks, op.Div(columns, blocks), axis=0))
    blockwise = op.Mul(blockwise, op.Unsqueeze(op.Cast(scales, to=_FLOAT32), [2]))
    if offsets is not None:
        blockwise = op.Add(blockwise, op.Unsqueeze(op.Cast(offsets, to=_FLOAT32), [2]))
    return op.Reshape(blockwise, op.Concat(rows, columns, axis=0))


@register_function(
    "x", "codes", "scales", "offsets?", "bias?", constant={"format": FORMATS}, format=STRING, columns=INT
)
def QuantizedLinear(  # noqa: N802 - op type
    op: Any, x: Any, codes: Any, scales: Any, offsets: Any, bias: Any, format: str
) -> Any:
    """Product with a packed weight `[N, K]` in fp32, plus bias."""

    def by_row(tiles: Any) -> Any:  # [Nt, Kb, 16] to [Nt * 16, Kb]
        return op.Reshape(op.Transpose(tiles, perm=[0, 2, 1]), op.Concat([-1], op.Shape(tiles, start=1, end=2), axis=0))

    values = op.Transpose(_values(op, codes, format, offsets is not None, -3), perm=[0, 3, 1, 2, 4])
    values = op.Reshape(values, op.Concat([-1], op.Shape(codes, start=1, end=2), [8, 4], axis=0))
    weight = _scaled(op, values, by_row(scales), None if offsets is None else by_row(offsets))
    size = op.Concat(_int_attribute(op, "columns"), op.Shape(x, start=-1), axis=0)
    y = op.MatMul(x, op.Transpose(op.Slice(weight, [0, 0], size, [0, 1]), perm=[1, 0]))
    return y if bias is None else op.Add(y, bias)


def quantized_linear(
    graph: Graph,
    x: ir.Value,
    codes: ir.Value,
    scales: ir.Value,
    offsets: ir.Value | None = None,
    bias: ir.Value | None = None,
    *,
    format: str,
    columns: int,
) -> ir.Value:
    """Returns `x @ weight.T + bias` in fp32 for a packed weight.

    Args:
        graph: where the node goes.
        x: fp32 `[..., K]`.
        codes: uint8, see the module.
        scales: fp16 (int4, int8) or fp32 (fp8) `[Nt, Kb, 16]`.
        offsets: fp16 `[Nt, Kb, 16]`, for int4.
        bias: fp32 `[N]`.
        format: `int4`, `int8`, `e4m3fn`, `e5m2`, `e4m3fnuz` or `e5m2fnuz`.
        columns: N.
    """
    y = graph.op("QuantizedLinear", x, codes, scales, offsets, bias, domain=DOMAIN, format=format, columns=columns)
    y.dtype = x.dtype
    if x.shape is not None:
        y.shape = ir.Shape([*x.shape[:-1], columns])
    return y


@register_function(
    "ids", "codes", "scales", "offsets?", constant={"format": FORMATS}, format=STRING, columns=INT, depth=INT
)
def QuantizedEmbedding(  # noqa: N802 - op type
    op: Any, ids: Any, codes: Any, scales: Any, offsets: Any, format: str
) -> Any:
    """Rows of a packed table `[N, K]`, `columns` N and `depth` K; ids are from 0 to N - 1."""
    flat = op.Reshape(ids, [-1])
    tile, row = op.Div(flat, 16), op.Unsqueeze(op.Mod(flat, 16), [1])

    def rows(tiles: Any, perm: list[int]) -> Any:  # The wanted row of each id's tile; perm puts the rows next to it.
        return op.GatherND(op.Transpose(op.Gather(tiles, tile), perm=perm), row, batch_dims=1)

    values = _values(op, rows(codes, [0, 3, 1, 2, 4]), format, offsets is not None, -2)
    vectors = _scaled(op, values, rows(scales, [0, 2, 1]), None if offsets is None else rows(offsets, [0, 2, 1]))
    depth = _int_attribute(op, "depth")
    shape = op.Concat(op.Shape(ids), depth, axis=0)
    return op.Reshape(op.Slice(vectors, [0], depth, [1]), shape, allowzero=1)


def quantized_embedding(
    graph: Graph,
    ids: ir.Value,
    codes: ir.Value,
    scales: ir.Value,
    offsets: ir.Value | None = None,
    *,
    format: str,
    columns: int,
    depth: int,
) -> ir.Value:
    """Looks ids up in a packed table.

    Args:
        graph: where the node goes.
        ids: int64 `[...]`, from 0 to `columns - 1`.
        codes: uint8, see the module.
        scales: fp16 or fp32 `[Nt, Kb, 16]`.
        offsets: fp16 `[Nt, Kb, 16]`, for int4.
        format: as for `quantized_linear`.
        columns: N, the vocabulary.
        depth: K, the length of a vector.

    Returns:
        fp32 `[..., K]`.
    """
    y = graph.op(
        "QuantizedEmbedding",
        *(ids, codes, scales, offsets),
        domain=DOMAIN,
        format=format,
        columns=columns,
        depth=depth,
    )
    y.dtype = ir.DataType.FLOAT
    if ids.shape is not None:
        y.shape = ir.Shape([*ids.shape, depth])
    return y


@register_function(
    "x", "scale?", constant={"format": tuple(FLOAT8), "scaling": SCALINGS}, format=STRING, scaling=STRING
)
def RoundToFloat8(op: Any, x: Any, scale: Any, format: str, scaling: str) -> Any:  # noqa: N802 - op type
    """`x / scale` rounded to an 8-bit float, times `scale`; what is beyond the format's range becomes its largest.

    Without a given scale each row (last axis) has its own, by which its largest value comes to the format's largest:
    exactly (`amax`), or as near as a power of two can bring it (`power_of_two`).
    """
    if scale is None:
        scale = op.Div(op.ReduceMax(op.Abs(x), [-1], keepdims=1), FLOAT8_MAX[format])
        scale = op.Max(scale, 2.0**-120)  # of a row of zeros
        if scaling == "power_of_two":
            # In float64, where log2 is near enough to tell a power of two from the next fp32 number.
            exponent = op.Div(op.Log(op.Cast(scale, to=_FLOAT64)), op.Constant(value=ir.tensor(np.log(2.0))))
            exponent = op.Ceil(op.Sub(exponent, op.Constant(value=ir.tensor(np.float64(1e-9)))))
            scale = op.Cast(op.Pow(op.Constant(value=ir.tensor(np.float64(2.0))), exponent), to=_FLOAT32)
    narrow = op.Cast(op.Div(x, scale), to=int(FLOAT8[format]), saturate=1)
    return op.Mul(op.Cast(narrow, to=_FLOAT32), scale)


def round_to_float8(
    graph: Graph, x: ir.Value, scale: ir.Value | None = None, *, format: str, scaling: str = "amax"
) -> ir.Value:
    """Rounds activations to the values that an 8-bit float format has.

    Args:
        graph: where the node goes.
        x: fp32 `[..., K]`.
        scale: fp32 `[]`, what x is divided by before it is rounded; without it, each row's own.
        format: `e4m3fn`, `e5m2`, `e4m3fnuz` or `e5m2fnuz`.
        scaling: how a row's own scale is found, `amax` or `power_of_two`.
    """
    y = graph.op("RoundToFloat8", x, scale, domain=DOMAIN, format=format, scaling=scaling)
    y.dtype = x.dtype
    y.shape = x.shape
    return y
