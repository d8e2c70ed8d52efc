# SPDX-License-Identifier: Apache-2.0
"""Strategies on layers: what each replica binds, and that their results make the whole one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from poptransformer.build import Build, use_build
from poptransformer.checkpoint import StateDict
from poptransformer.errors import ConfigError
from poptransformer.graph import Graph
from poptransformer.layers import Attention, Embedding, Linear, LMHead
from poptransformer.layers.base_layer import BaseLayer
from poptransformer.parallel import FusedQKV, Heads, MultiQueryQKV, strategy_of, valid_replicas

pytestmark = pytest.mark.unit


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def bound(make: Callable[[], Any], weights: Mapping[str, np.ndarray], replicas: int) -> list[dict[str, np.ndarray]]:
    """What each replica's layer binds, by name."""
    found = []
    for replica in range(replicas):
        build = Build(
            graph=Graph(),
            state_dict=StateDict.wrap(weights, "a test checkpoint"),
            model_type="tp",
            num_replicas=replicas,
            replica=replica,
        )
        with use_build(build):
            make()
        assert build.graph is not None
        found.append({k: v.const_value.numpy() for k, v in build.graph.ir_graph.initializers.items()})
    return found


@pytest.mark.parametrize(("size", "replicas"), [(96, 4), (50, 4), (33, 2), (7, 3)])
def test_start_then_end_is_the_whole_product(size: int, replicas: int) -> None:
    weights = {"up.weight": draw(size, 24), "up.bias": draw(size), "down.weight": draw(10, size), "down.bias": draw(10)}

    def make() -> None:
        Linear(None, "up", 24, size, strategy="start")
        Linear(None, "down", size, 10, strategy="end")

    x, total = draw(5, 24), np.zeros((5, 10), np.float32)
    for own in bound(make, weights, replicas):
        hidden = np.tanh(x @ own["up.weight"] + own["up.bias"])
        total += hidden @ own["down.weight"] + own["down.bias"]
    hidden = np.tanh(x @ weights["up.weight"].T + weights["up.bias"])
    np.testing.assert_allclose(total, hidden @ weights["down.weight"].T + weights["down.bias"], atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "counts", "replicas"),
    [
        (FusedQKV(6, 4), (6, 6, 6), 3),
        (MultiQueryQKV(8, 2, 4), (8, 2, 2), 2),
        (MultiQueryQKV(8, 2, 4), (8, 2, 2), 4),
        (MultiQueryQKV(8, 1, 4), (8, 1, 1), 8),
        (Heads(4, 6), (6,), 2),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_heads_go_to_the_replica_that_has_their_queries(strategy: Any, counts: tuple[int, ...], replicas: int) -> None:
    head_dim = 4
    size = sum(counts) * head_dim
    # Each column is the number of its head within its group.
    labels = np.concatenate([np.repeat(np.arange(count), head_dim) for count in counts]).astype(np.float32)
    for replica, own in enumerate(
        bound(lambda: Linear(None, "qkv", 1, size, False, strategy), {"qkv.weight": labels[:, None]}, replicas)
    ):
        columns = own["qkv.weight"][0].reshape(-1, head_dim)[:, 0].astype(int).tolist()
        queries = counts[0] // replicas
        assert columns[:queries] == list(range(replica * queries, (replica + 1) * queries))
        rest = columns[queries:]
        for count in counts[1:]:
            keys = max(1, count // replicas)
            group, rest = rest[:keys], rest[keys:]
            assert group == sorted({query * count // counts[0] for query in columns[:queries]})
        assert not rest


def test_an_uneven_vocabulary() -> None:
    table = draw(7, 3)

    def make() -> None:
        embedding = Embedding(None, "wte", 7, 3, "vocabulary")
        LMHead(None, "lm_head", 7, 3, tie_weight=embedding)

    shares = bound(make, {"wte.weight": table}, 3)
    assert [own["wte.token_range"].tolist() for own in shares] == [[0, 3], [3, 6], [6, 7]]
    rows = np.concatenate([own["wte.weight"] for own in shares])
    np.testing.assert_array_equal(rows, np.concatenate([table, np.zeros((2, 3), np.float32)]))


def test_one_replica_is_the_plain_layer() -> None:
    weights = {"l.weight": draw(6, 4), "l.bias": draw(6)}
    graphs = []
    for model_type in ("shard", "tp"):
        build = Build(graph=Graph(), state_dict=StateDict.wrap(weights, "x"), model_type=model_type)
        with use_build(build):
            assert build.graph is not None
            layer = Linear(None, "l", 4, 6, strategy="end")
            layer(build.graph, build.graph.constant(draw(2, 4)))
            graphs.append([node.op_type for node in build.graph.ir_graph])
    assert graphs[0] == graphs[1] and "AllReduce" not in graphs[0]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "valid"),
    [(25, None, [1, 5, 25]), (32, 8, [1, 2, 4, 8, 16, 32]), (9, 3, [1, 3, 9]), (6, 2, [1, 2, 6]), (71, 1, [1, 71])],
)
def test_valid_numbers_of_replicas(heads: int, kv_heads: int | None, valid: list[int]) -> None:
    assert valid_replicas(heads, kv_heads) == valid


def test_a_number_that_cannot_work_is_refused_with_those_that_can() -> None:
    with (
        pytest.raises(
            ConfigError, match=r"num_replicas=4 does not divide 25 heads; valid: 1, 5, 25; power of two: 1 \(h\.0\)"
        ),
        use_build(Build(graph=Graph(), model_type="tp", num_replicas=4)),
    ):
        Attention("h.0", None, 0, 25, 25, 64)


def test_only_tp_has_replicas() -> None:
    with pytest.raises(ConfigError, match=r"num_replicas is 2, but model_type is shard.*Set global_args.model_type=tp"):
        Build(num_replicas=2)


def test_unknown_strategies_and_wrong_heads() -> None:
    with pytest.raises(ConfigError, match=r"Invalid strategy strat, options: .* Nearest: start"):
        strategy_of("strat")
    with pytest.raises(ConfigError, match=r"A layer of 10 columns cannot be divided as fused_qkv: 2 \+ 2 \+ 2 heads"):
        bound(lambda: Linear(None, "x", 3, 10, False, FusedQKV(2, 4)), {"x.weight": draw(10, 3)}, 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"vs_type": "consecutive", "group_size": 1}, [0, 1, 2, 3]),
        ({"vs_type": "consecutive", "group_size": 2}, [0, 0, 1, 1]),
        ({"vs_type": "orthogonal", "group_size": 2}, [0, 1, 0, 1]),
    ],
    ids=str,
)
def test_popart_variable_settings(settings: dict[str, Any], expected: list[int]) -> None:
    groups = 4 // settings["group_size"]
    stacked = np.arange(groups, dtype=np.float32)[:, None] * np.ones((groups, 5), np.float32)

    def make(entries: np.ndarray) -> None:
        BaseLayer(None, "x").add_initialized_input_tensor(entries, "w", **settings)

    assert [int(own["w"][0]) for own in bound(lambda: make(stacked), {}, 4)] == expected
    with pytest.raises(ConfigError, match="its first axis must have"):
        bound(lambda: make(np.ones((3, 5), np.float32)), {}, 4)
