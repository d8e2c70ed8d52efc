# SPDX-License-Identifier: Apache-2.0
"""What ranks say to each other: `AllReduce`, `AllGather` among the replicas, `Send`, `Recv` between stages.

Only the native library can talk to other ranks. The bodies are those of a model that runs alone; where there are more
ranks they end the run with an error, for they would give wrong numbers.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from poptransformer.graph import DOMAIN, Graph, register_function

INT = ir.AttributeType.INT
_FLOAT32 = int(ir.DataType.FLOAT)
ONE, MANY = "one", "many"
RANKS = (ONE, MANY)  # what the attribute `ranks` says


def _impossible(op: Any, x: Any) -> Any:
    """`x`, after an error whose text, from onnxruntime, has the name of the node in it."""
    owner = op.builder.owner
    with owner.nameScope("this_model_has_several_ranks_and_needs_the_native_library_of_poptransformer"):
        flat = op.Reshape(x, [-1])
        # Not by Size: where shapes are known, ONNX's shape inference would see that the index is past the end.
        return op.Add(x, op.Gather(flat, op.ReduceMax(op.Shape(flat), keepdims=0)))


@register_function("x", constant={"ranks": RANKS}, replicas=INT)
def AllReduce(op: Any, x: Any, ranks: str = ONE) -> Any:  # noqa: N802 - op type
    """The sum of all replicas' x."""
    return op.Identity(x) if ranks == ONE else _impossible(op, x)


@register_function("x", constant={"ranks": RANKS}, replicas=INT)
def AllGather(op: Any, x: Any, ranks: str = ONE) -> Any:  # noqa: N802 - op type
    """All replicas' columns side by side."""
    if ranks == ONE:
        return op.Identity(x)
    # The right shape, so that what is after the node still fits.
    other_axes = op.Expand(1, op.Sub(op.Size(op.Shape(x)), [1]))
    replicas = op.Unsqueeze(op.Constant(value_int=ir.RefAttr("value_int", "replicas", INT)), [0])
    return op.Tile(_impossible(op, x), op.Concat(other_axes, replicas, axis=0))


@register_function("x", to=INT, tag=INT)
def Send(op: Any, x: Any) -> Any:  # noqa: N802 - op type
    """Gives x to another stage; the number of its values."""
    return op.Size(_impossible(op, x))


@register_function("like", source=INT, tag=INT)
def Recv(op: Any, like: Any) -> Any:  # noqa: N802 - op type
    """What another stage has sent; `like` only puts the node into a step."""
    return _impossible(op, op.Cast(like, to=_FLOAT32))


def all_reduce(graph: Graph, x: ir.Value, replicas: int) -> ir.Value:
    """Returns the sum of all replicas' `x`, the same bits on each of them; `x` itself where there is one.

    Args:
        graph: where the node goes.
        x: fp32, of any shape.
        replicas: how many there are.
    """
    if replicas == 1:
        return x
    y = graph.op("AllReduce", x, domain=DOMAIN, replicas=replicas, ranks=MANY)
    y.dtype, y.shape = x.dtype, x.shape
    return y


def all_gather(graph: Graph, x: ir.Value, replicas: int) -> ir.Value:
    """Returns all replicas' columns in the order of the replicas, `[..., C]` to `[..., replicas * C]`.

    Args:
        graph: where the node goes.
        x: fp32 `[..., C]`.
        replicas: how many there are; `x` itself where there is one.
    """
    if replicas == 1:
        return x
    y = graph.op("AllGather", x, domain=DOMAIN, replicas=replicas, ranks=MANY)
    y.dtype = x.dtype
    if x.shape is not None:
        columns = x.shape[-1]
        y.shape = ir.Shape([*x.shape[:-1], replicas * columns if isinstance(columns, int) else None])
    return y
