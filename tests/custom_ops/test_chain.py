# SPDX-License-Identifier: Apache-2.0
"""Chain: steps against numpy, how they hand values to each other, and what its attributes must say."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attention_case import Case as AttentionCase
from onnx import TensorProto

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
NONE = -1
Step = tuple[int, Sequence[int], Sequence[int]]


def layout(kinds: Sequence[tuple[str, dict[str, Any]]], steps: Sequence[Step]) -> dict[str, Any]:
    """The attributes of a chain."""
    numbers = [n for kind, reads, makes in steps for n in (kind, len(reads), *reads, len(makes), *makes)]
    named = {f"{number}.{name}": value for number, (_, own) in enumerate(kinds) for name, value in own.items()}
    return {"kinds": " ".join(op for op, _ in kinds), "steps": numbers, **named}


def fused(*columns: int, activation: str = "none", gated: int = 0, norm: str = "none") -> tuple[str, dict[str, Any]]:
    """A `FusedLinear` over one float weight, which is cut into as many outputs as there are columns."""
    return "FusedLinear", {
        "norm": norm,
        "epsilon": 1e-5,
        "activation": activation,
        "gated": gated,
        "formats": "float",
        "columns": list(columns),
        "splits": [len(columns)],
    }


LINEAR = ("Linear", {})
GATHER = ("GatherND", {"batch_dims": 1})
CASE = AttentionCase(B=2, L=1, N=4, K=2, H=16, S=20, past=[5, 19], cache="float16")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape, np.float32)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_steps_hand_on_their_values(kernels: Any, rows: int, constant: bool) -> None:
    """A residual stream: values with several readers, one of them an output too, and slots that are used again."""
    x, up, down, head = draw(1, rows, 33), draw(50, 33), draw(33, 50), draw(20, 33)
    kinds = [fused(50, activation="relu", norm="none"), fused(33), LINEAR]
    # 0 x, 1 up, 2 down, 3 head -> 4 logits, 5 second sum; 6, 7, 8 in between
    steps: list[Step] = [
        (0, [0, NONE, NONE, NONE, 1], [6]),
        (1, [6, NONE, NONE, 0, 2], [7]),
        (0, [7, NONE, NONE, NONE, 1], [8]),
        (1, [8, NONE, NONE, 7, 2], [5]),
        (2, [5, 3], [4]),
    ]
    weights = (1, 2, 3) if constant else ()
    logits, last = kernels.run("Chain", [x, up, down, head], [FLOAT, FLOAT], None, weights, **layout(kinds, steps))
    expected = x.astype(np.float64)
    for _ in range(2):
        expected = expected + np.maximum(expected @ up.T, 0) @ down.T
    near(last, expected)
    near(logits, expected @ head.T)


def test_a_step_has_several_outputs(kernels: Any) -> None:
    x, weight, other = draw(2, 3, 8), draw(24, 8), draw(8, 8)
    steps: list[Step] = [(0, [0, NONE, NONE, NONE, 1], [5, 3, 6]), (1, [5, NONE, NONE, 6, 2], [4])]
    (second, result) = kernels.run(
        "Chain", [x, weight, other], [FLOAT, FLOAT], **layout([fused(8, 8, 8), fused(8)], steps)
    )
    q, k, v = np.split(x.astype(np.float64) @ weight.T, 3, axis=-1)
    near(second, k)
    near(result, q @ other.T + v)


def test_caches_are_written_in_place(kernels: Any) -> None:
    """The cache goes in and out as one buffer, and the step after reads what attention gave."""
    query, key, value, past_key, past_value, lengths = CASE.inputs()
    weight = draw(7, query.shape[-1])
    expected, *presents = kernels.run(CASE.op, CASE.inputs(), CASE.output_types, **CASE.attributes)
    buffers = past_key.copy(), past_value.copy()
    steps: list[Step] = [(0, [0, 1, 2, 3, 4, 5], [10, 8, 9]), (1, [10, 6], [7])]
    result, *_ = kernels.run(
        "Chain",
        [query, key, value, *buffers, lengths, weight],
        [FLOAT, *CASE.output_types[1:]],
        {1: buffers[0], 2: buffers[1]},
        **layout([(CASE.op, CASE.attributes), LINEAR], steps),
    )
    near(result, expected.astype(np.float64) @ weight.T)
    for buffer, present in zip(buffers, presents, strict=True):
        np.testing.assert_array_equal(buffer, present)


@pytest.mark.parametrize(("L", "indices"), [(4, [[3], [0]]), (4, [[-4, 3], [1, -1]]), (1, [[0], [0]]), (3, [[], []])])
def test_tokens_are_chosen(kernels: Any, L: int, indices: list[list[int]]) -> None:
    x, weight = draw(2, L, 6), draw(5, 6)
    positions = np.array(indices, np.int64).reshape(2, -1, 1)
    steps: list[Step] = [(0, [0, 1], [4]), (1, [4, 2], [3])]
    (found,) = kernels.run("Chain", [x, positions, weight], **layout([GATHER, LINEAR], steps))
    near(found, np.take_along_axis(x.astype(np.float64), positions, axis=1) @ weight.T)


def test_long_prompts_and_single_tokens_take_turns(kernels: Any) -> None:
    """Memory in between grows, is freed where it was large, and serves the next call."""
    weights = [draw(600, 16), draw(16, 600)]
    steps: list[Step] = [(0, [0, 1], [4]), (0, [4, 2], [3])]
    for rows in (1, 900, 1, 0, 900, 2):
        x = draw(1, rows, 16)
        (found,) = kernels.run("Chain", [x, *weights], **layout([LINEAR], steps))
        near(found, x.astype(np.float64) @ weights[0].T @ weights[1].T)


def test_one_session_serves_threads_at_once(kernels: Any) -> None:
    from onnx import helper

    up, down = draw(64, 32), draw(32, 64)
    steps: list[Step] = [(0, [0, 1], [4]), (0, [4, 2], [3])]
    node = helper.make_node("Chain", ["x", "up", "down"], ["y"], domain="poptransformer", **layout([LINEAR], steps))
    session = kernels.session(node, {"x": draw(1, 1, 32)}, {"y": FLOAT}, up=up, down=down)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for rows in (1, 5, 40, 2) * 20:
            x = draw(1, rows, 32, seed=seed)
            (found,) = session.run(None, {"x": x})
            if not np.allclose(found, x.astype(np.float64) @ up.T @ down.T, rtol=1e-5, atol=1e-3):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("kinds", "steps", "message"),
    [
        ([("Nonsense", {})], [(0, [0, 1], [2])], "attribute 'kinds' must be ops of this library.*found Nonsense"),
        ([("Chain", {})], [(0, [0, 1], [2])], "attribute 'kinds' must be ops of this library other than Chain"),
        ([LINEAR], [(1, [0, 1], [2])], "attribute 'steps' must be for each step: kind.*found 1"),
        ([LINEAR], [(0, [0, 1], [])], "attribute 'steps' must be a step for every value, found 2"),
        ([LINEAR], [(0, [0, 1, NONE, 0], [2])], "attribute 'steps' must be no more inputs and outputs than Linear has"),
        ([LINEAR], [(0, [0, 3], [2])], "attribute 'steps' must be values made before they are read, found 3"),
        ([LINEAR], [(0, [0, 1], [1])], "attribute 'steps' must be outputs that are no inputs, found 1"),
        ([LINEAR], [(0, [0, 1], [2]), (0, [0, 1], [2])], "attribute 'steps' must be values that one step makes"),
        ([LINEAR], [(0, [0, 1], [-2])], "attribute 'steps' must be for each step.*found -2"),
        ([LINEAR], [(0, [0, 1], [1 << 40])], "attribute 'steps' must be for each step"),
        ([LINEAR], [(0, [0, 1], [8])], "attribute 'steps' must be a step for every value, found 2"),
        ([("FusedLinear", {})], [(0, [0, 1], [2])], "FusedLinear: attribute '.*' .* is required"),
        ([("GatherND", {"batch_dims": 0})], [(0, [0, 1], [2])], "GatherND: attribute 'batch_dims' must be 1, found 0"),
    ],
)
def test_bad_attributes(kernels: Any, kinds: Any, steps: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        kernels.run("Chain", [draw(1, 2, 4), draw(3, 4)], **layout(kinds, steps))


@pytest.mark.parametrize(
    "numbers", [[0], [0, 2, 0], [0, 9, 0, 1], [0, 2, 0, 1, 1], [0, -1], [-1], [0, 2, 0, 1, 1, 2, 0]]
)
def test_cut_off_steps(kernels: Any, numbers: list[int]) -> None:
    with pytest.raises(Exception, match=r"poptransformer\.Chain: attribute 'steps' must be .+, found .+"):
        kernels.run("Chain", [draw(1, 2, 4), draw(3, 4)], kinds="Linear", steps=numbers)


@pytest.mark.parametrize(
    ("x", "indices", "message"),
    [
        (draw(1, 2, 4), np.full((1, 1, 1), 2, np.int64), "GatherND: input 'indices' must be from -2 to 1, found 2"),
        (draw(1, 2, 4), np.full((1, 1, 1), -3, np.int64), "GatherND: input 'indices' must be from -2 to 1, found -3"),
        (draw(1, 0, 4), np.zeros((1, 1, 1), np.int64), "GatherND: input 'indices' must be from -0 to -1, found 0"),
        (draw(1, 2, 4), np.zeros((2, 1, 1), np.int64), r"GatherND: input 'indices' must be \[1, M, 1\]"),
        (draw(1, 2, 4), np.zeros((1, 1, 1), np.int32), "GatherND: input 'indices' must be int64, found int32"),
        (draw(2, 4), np.zeros((2, 1, 1), np.int64), r"GatherND: input 'data' must be \[B, L, K\]"),
    ],
)
def test_mistakes_name_the_step(kernels: Any, x: np.ndarray, indices: np.ndarray, message: str) -> None:
    steps: list[Step] = [(0, [0, 1], [4]), (1, [4, 2], [3])]
    with pytest.raises(Exception, match=message):
        kernels.run("Chain", [x, indices, draw(3, 4)], **layout([GATHER, LINEAR], steps))


def test_values_of_open_type_are_not_handed_on(kernels: Any) -> None:
    steps: list[Step] = [(0, [0, 1, 2, 3, 4, 5], [6, 8, 7])]
    with pytest.raises(Exception, match="attribute 'steps' must be outputs of the node where CachedAttention decides"):
        kernels.run("Chain", CASE.inputs(), [FLOAT, FLOAT], **layout([(CASE.op, CASE.attributes)], steps))


def test_a_mistake_leaves_the_session_usable(kernels: Any) -> None:
    from onnx import helper

    steps: list[Step] = [(0, [0, 1], [4]), (1, [4, 2], [3])]
    node = helper.make_node(
        "Chain", ["x", "at", "weight"], ["y"], domain="poptransformer", **layout([GATHER, LINEAR], steps)
    )
    x, weight = draw(1, 2, 4), draw(3, 4)
    session = kernels.session(node, {"x": x, "at": np.zeros((1, 1, 1), np.int64)}, {"y": FLOAT}, weight=weight)
    with pytest.raises(Exception, match="must be from -2 to 1, found 7"):
        session.run(None, {"x": x, "at": np.full((1, 1, 1), 7, np.int64)})
    (found,) = session.run(None, {"x": x, "at": np.ones((1, 1, 1), np.int64)})
    near(found, x[:, 1:].astype(np.float64) @ weight.T)


@pytest.mark.parametrize(("depth", "width"), [(0, 40), (40, 0), (0, 0), (8, 16), (600, 700)])
def test_weights_of_any_size_are_asked_for_ahead(kernels: Any, depth: int, width: int) -> None:
    """Steps with enough work for all threads, whose next weights are empty, small or larger than what is asked for."""
    x, up, weight, out = draw(1, 2, 300), draw(400 + depth, 300), draw(width, depth), draw(400, 400)
    kinds = [fused(400, depth), fused(width), fused(400)]
    steps: list[Step] = [
        (0, [0, NONE, NONE, NONE, 1], [6, 7]),
        (2, [6, NONE, NONE, NONE, 3], [4]),
        (1, [7, NONE, NONE, NONE, 2], [5]),
    ]
    for _ in range(3):
        first, second = kernels.run(
            "Chain", [x, up, weight, out], [FLOAT, FLOAT], None, (1, 2, 3), **layout(kinds, steps)
        )
        hidden = x.astype(np.float64) @ up.T
        near(first, hidden[..., :400] @ out.T)
        near(second, hidden[..., 400:] @ weight.T)
