# SPDX-License-Identifier: Apache-2.0
"""What is being built right now: two builds never see each other, and REGISTRY only looks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import poptransformer
from poptransformer import REGISTRY
from poptransformer.build import Build, current_build, use_build
from poptransformer.errors import PopTransformerError
from poptransformer.layers import RMSLayerNorm
from tests.unit.layers.helpers import MODES, building


def norm(size: int) -> dict[str, np.ndarray]:
    return {"norm.weight": np.full(size, size, np.float32)}


def test_it_names_what_poptransformers_users_read() -> None:
    with building(norm(3), "tp") as build:
        assert REGISTRY.get("model_type") == "tp"
        assert REGISTRY.get("main_graph") is build.graph
        assert REGISTRY["state_dict"] is build.state_dict
        assert REGISTRY.get("num_replicas") == 1
        assert REGISTRY.get("no_such_name") is None
        assert set(REGISTRY) >= {"main_graph", "batch_size", "precision", "enable_pipeline"}


def test_it_is_read_only() -> None:
    with building({}):
        with pytest.raises(TypeError):
            REGISTRY["model_type"] = "tp"  # type: ignore[index]
        with pytest.raises(AttributeError):
            REGISTRY.register("model_type", "tp")  # type: ignore[attr-defined]
        assert REGISTRY.get("model_type") == "shard"


def test_it_is_empty_outside_of_a_build() -> None:
    assert REGISTRY.get("model_type") is None
    assert "main_graph" not in REGISTRY
    with pytest.raises(PopTransformerError, match="No model is being built here"):
        current_build()


def test_the_package_shows_the_same_one() -> None:
    assert poptransformer.REGISTRY is REGISTRY


def test_builds_nest() -> None:
    with use_build(Build(model_type="shard")):
        with use_build(Build(model_type="tp")):
            assert REGISTRY.get("model_type") == "tp"
        assert REGISTRY.get("model_type") == "shard"


def test_an_error_ends_the_build() -> None:
    with pytest.raises(ZeroDivisionError), use_build(Build()):
        raise ZeroDivisionError
    assert REGISTRY.get("model_type") is None


def test_two_models_in_one_process() -> None:
    with building(norm(3)) as first:
        first_layer = RMSLayerNorm(None, "norm", 3)
    with building(norm(5)) as second:
        second_layer = RMSLayerNorm(None, "norm", 5)
    for build, layer, size in ((first, first_layer, 3), (second, second_layer, 5)):
        assert build.graph is not None
        assert layer.build is build
        value = build.graph.ir_graph.initializers["norm.weight"]
        assert value is layer.weight_id
        assert value.shape == [size]


def test_two_models_in_two_threads() -> None:
    """Both are inside of their builds at once; each binds the same name from its own checkpoint."""
    barrier = threading.Barrier(2, timeout=30)

    def build_one(number: int) -> tuple[str, list[int]]:
        size = 3 + number
        with building(norm(size), MODES[number]) as build:
            barrier.wait()
            layer = RMSLayerNorm(None, "norm", size)
            barrier.wait()
            assert current_build() is build
            assert REGISTRY.get("main_graph") is layer.main_graph
            tensor = layer.weight_id.const_value
            assert tensor is not None
            return layer.model_type, tensor.numpy().tolist()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(build_one, range(2))) == [("shard", [3.0] * 3), ("tp", [4.0] * 4)]


def test_a_thread_does_not_inherit_a_build() -> None:
    with building({}), ThreadPoolExecutor(1) as threads:
        assert threads.submit(REGISTRY.get, "model_type").result() is None
