# SPDX-License-Identifier: Apache-2.0
"""Wrong shapes, types, attributes and missing inputs of every op: an error that says what and where, never a crash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from valid_nodes import NODES, Node, all_ops, names_of

from poptransformer.passes.fuse_linear import FUSED_LINEAR

TYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_]
# Types that a weight or cache may have beside its own.
SAME = {
    ("Linear", "weight"): [np.float16],
    (FUSED_LINEAR, "weight0"): [np.float16],
    (FUSED_LINEAR, "weight1"): [np.float16],
}
# Caches go in and out with one type, which onnxruntime takes from `past_value`, so it must know what stands behind.
BY_ONNXRUNTIME = (
    r"Type 'tensor\(\w+\)' of input parameter \(in\d\) of operator \(\w*CachedAttention\)"
    r"|Type \(tensor\(\w+\)\) of output arg \(out\d\) of node \(\) does not match expected type \(tensor\(\w+\)\)"
)
IDS = [f"{number}-{node}" for number, node in enumerate(NODES)]
by_node = pytest.mark.parametrize("node", NODES, ids=IDS)


def complaint(op: str) -> str:
    """What every message must look like: op, input or attribute, expected, found."""
    return rf"poptransformer\.{op}: ((input|attribute) '\w+' must be .+, found .+|\w+\[\d+\] .*must .+)"


def spoiled(node: Node) -> Iterator[tuple[str, str, np.ndarray]]:
    """(what, input, array): each input with a dimension more, less or of another size."""
    for name, array in node.inputs.items():
        if array is None:
            continue
        if name not in ("x", "ids"):
            yield "more", name, np.ascontiguousarray(array[None].repeat(2, axis=0))
        if array.ndim and name != "ids":
            yield "scalar", name, np.zeros((), array.dtype)
        if array.ndim > 1 and name not in ("x", "ids"):
            yield "fewer", name, np.ascontiguousarray(array[0])
        for axis in range(array.ndim):
            if (name, axis) not in node.free:
                yield f"axis {axis} longer", name, np.concatenate([array, array], axis=axis)
                yield f"axis {axis} empty", name, np.ascontiguousarray(np.take(array, [], axis=axis))


def test_every_op_is_here() -> None:
    assert {node.op for node in NODES} == all_ops()
    for node in NODES:
        if node.op != FUSED_LINEAR:
            assert list(node.inputs)[: len(names_of(node.op))] == names_of(node.op)


@by_node
@pytest.mark.parametrize("constant", [False, True], ids=["inputs", "initializers"])
def test_the_nodes_are_valid(kernels: Any, node: Node, constant: bool) -> None:
    for output in node.run(kernels, constant):
        assert np.isfinite(output.astype(np.float64)).all()


@by_node
@pytest.mark.parametrize("constant", [False, True], ids=["inputs", "initializers"])
def test_wrong_shapes(kernels: Any, node: Node, constant: bool) -> None:
    tried = 0
    for what, name, array in spoiled(node):
        with pytest.raises(Exception) as error:
            node.run(kernels, constant, **{name: array})
        assert re.search(complaint(node.op), str(error.value)), (what, name, str(error.value))
        tried += 1
    assert tried >= sum(array is not None for array in node.inputs.values())


@by_node
def test_missing_inputs(kernels: Any, node: Node) -> None:
    """onnxruntime checks those that an op always has; its message has their number."""
    for number, (name, array) in enumerate(node.inputs.items()):
        if array is None or name in node.optional:
            continue
        with pytest.raises(Exception) as error:
            node.run(kernels, **{name: None})
        expected = rf"{node.op}.*input {number} is marked single|{complaint(node.op)}"
        assert re.search(expected, str(error.value)), str(error.value)


@by_node
@pytest.mark.parametrize("constant", [False, True], ids=["inputs", "initializers"])
def test_wrong_types(kernels: Any, node: Node, constant: bool) -> None:
    for name, array in node.inputs.items():
        for dtype in TYPES:
            if array is None or dtype == array.dtype or dtype in SAME.get((node.op, name), []):
                continue
            with pytest.raises(Exception) as error:
                node.run(kernels, constant, **{name: array.astype(dtype)})
            expected = rf"poptransformer\.{node.op}: input '\w+' must be .+, found {np.dtype(dtype).name}"
            if name.startswith(("past_", "prefix_")):
                expected = f"{complaint(node.op)}|{BY_ONNXRUNTIME}"
            assert re.search(expected, str(error.value)), (name, dtype, str(error.value))


@by_node
def test_wrong_attributes(kernels: Any, node: Node) -> None:
    for name, value in node.attributes.items():
        wrong: list[Any] = [None, "mistake", 10**6, -7, 0.125, [5, 6]]
        for attribute in wrong:
            if isinstance(attribute, float) and isinstance(value, float):
                continue
            attributes = {key: other for key, other in node.attributes.items() if key != name}
            attributes |= {} if attribute is None else {name: attribute}
            spoilt = Node(node.op, node.inputs, node.outputs, attributes)
            with pytest.raises(Exception) as error:
                spoilt.run(kernels)
            assert re.search(rf"poptransformer\.{node.op}: ", str(error.value)), (name, attribute, str(error.value))


@by_node
def test_anything_at_all(kernels: Any, node: Node) -> None:
    """Random shapes and types for one or two inputs: an error of ours, or a result; the process lives."""
    random = np.random.default_rng(0)
    given = [name for name, array in node.inputs.items() if array is not None]
    for _ in range(60):
        changes: dict[str, np.ndarray] = {}
        count = min(int(random.integers(1, 3)), len(given))
        for name in random.choice(given, count, replace=False):
            array = node.inputs[name]
            shape = list(array.shape)
            for _ in range(random.integers(1, 3)):
                if shape:
                    shape[random.integers(len(shape))] = random.choice([0, 1, 2, 3, 16, 33])
            dtype = random.choice(TYPES) if random.random() < 0.2 else array.dtype
            changes[str(name)] = np.resize(array, shape).astype(dtype)
        try:
            node.run(kernels, bool(random.random() < 0.5), **changes)
        except Exception as error:
            assert re.search(f"{complaint(node.op)}|{BY_ONNXRUNTIME}", str(error)), (changes, str(error))


@by_node
def test_values_out_of_range(kernels: Any, node: Node) -> None:
    """Whatever counts or points must be checked: lengths, ids, tokens."""
    for name in {"ids", "lengths", "past_lengths", "prefix_lengths", "history"} & node.inputs.keys():
        for value in (-1, 1000, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
            array = node.inputs[name].copy()
            array.flat[-1] = value
            with pytest.raises(Exception) as error:
                node.run(kernels, **{name: array})
            message = str(error.value)
            assert re.search(rf"poptransformer\.{node.op}: .*{name}.*must ", message) and str(value) in message, message
