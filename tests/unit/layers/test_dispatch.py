# SPDX-License-Identifier: Apache-2.0
"""Which form of a layer a build gets: the three classes of PopTransformer's README, and our short form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer import REGISTRY, ops
from poptransformer.build import Build
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.graph import Graph
from poptransformer.layers import BaseLayer
from tests.unit.layers.helpers import MODES, building, run_layer

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
WEIGHTS = {"model.custom.weight": WEIGHT}
X = np.array([[1.0, -2.0]], np.float32)

# What the forms multiply by, so that a result tells which of them ran.
FACTOR = {"shard": 1.0, "tp": 10.0}


class BaseCustomLayer(BaseLayer):
    def __init__(self, context: str, name: str, calls: list[str]) -> None:
        super().__init__(context, name)
        self.calls = calls

    def collect_bind_layer_weights(self) -> None:
        self.calls.append("base collects")
        weight_np = self.get_param_from_state_dict(self.key("weight"), [2, 3])
        self.weight_id = self.add_initialized_input_tensor(weight_np)

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        return ops.matmul(graph, x, self.weight_id)


class TPCustomLayer(BaseCustomLayer):
    def collect_bind_layer_weights(self) -> None:
        self.calls.append("tp collects")
        super().collect_bind_layer_weights()

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        return ops.mul(graph, super().__call__(graph, x), FACTOR["tp"])


class ByHand(TPCustomLayer, BaseCustomLayer):
    """The README's third class, with its slips corrected."""

    layer_class_map = {"tp": TPCustomLayer, "shard": BaseCustomLayer}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.layer_class = self.layer_class_map[REGISTRY.get("model_type")]
        super().__init__(*args, **kwargs)

    def collect_bind_layer_weights(self) -> None:
        return self.layer_class.collect_bind_layer_weights(self)

    def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
        return self.layer_class.__call__(self, graph, x)


class Short(BaseCustomLayer, tp=TPCustomLayer):
    """The same in one line."""


FORMS = [ByHand, Short]
COLLECTED = {"shard": ["base collects"], "tp": ["tp collects", "base collects"]}


@pytest.mark.parametrize("model_type", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_both_forms_in_both_modes(form: type[BaseCustomLayer], model_type: str) -> None:
    calls: list[str] = []
    result = run_layer(lambda: form("model", "custom", calls), X, WEIGHTS, model_type)
    np.testing.assert_array_equal(result, X @ WEIGHT * FACTOR[model_type])
    assert calls == COLLECTED[model_type]


@pytest.mark.parametrize("model_type", MODES)
def test_the_chosen_layer_is_an_instance_of_what_was_asked_for(model_type: str) -> None:
    with building(WEIGHTS, model_type):
        layer = Short("model", "custom", [])
    assert isinstance(layer, Short)
    assert isinstance(layer, TPCustomLayer) == (model_type == "tp")
    assert type(layer).__name__ == "Short"


@pytest.mark.parametrize("model_type", MODES)
@pytest.mark.parametrize("form", [BaseCustomLayer, TPCustomLayer])
def test_a_form_asked_for_by_name_is_that_form(form: type[BaseCustomLayer], model_type: str) -> None:
    with building(WEIGHTS, model_type):
        assert type(form("model", "custom", [])) is form


# ---- subclasses of a dispatching layer ----------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_a_subclass_keeps_what_it_overrides(form: type[BaseCustomLayer], model_type: str) -> None:
    class Negated(form):  # type: ignore[valid-type, misc]
        def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
            return ops.sub(graph, 0.0, super().__call__(graph, x))

    result = run_layer(lambda: Negated("model", "custom", []), X, WEIGHTS, model_type)
    np.testing.assert_array_equal(result, -(X @ WEIGHT) * FACTOR[model_type])


@pytest.mark.parametrize("model_type", MODES)
def test_overrides_of_every_generation_run(model_type: str) -> None:
    class Child(Short):
        def collect_bind_layer_weights(self) -> None:
            self.calls.append("child collects")
            super().collect_bind_layer_weights()

    class Grandchild(Child):
        def collect_bind_layer_weights(self) -> None:
            self.calls.append("grandchild collects")
            super().collect_bind_layer_weights()

    calls: list[str] = []
    with building(WEIGHTS, model_type):
        Grandchild("model", "custom", calls)
    assert calls == ["grandchild collects", "child collects", *COLLECTED[model_type]]


@pytest.mark.parametrize("model_type", MODES)
def test_a_subclass_may_bring_its_own_tensor_parallel_form(model_type: str) -> None:
    class TPOther(TPCustomLayer):
        def __call__(self, graph: Graph, x: ir.Value) -> ir.Value:
            return ops.mul(graph, super().__call__(graph, x), 5.0)

    class Other(Short, tp=TPOther):
        pass

    result = run_layer(lambda: Other("model", "custom", []), X, WEIGHTS, model_type)
    np.testing.assert_array_equal(result, X @ WEIGHT * {"shard": 1.0, "tp": 50.0}[model_type])


# ---- binding happens once -----------------------------------------------------------------------------------


class SelfBinding(BaseCustomLayer):
    """As PopTransformer's layers do: the constructor collects, and then uses what was bound."""

    def __init__(self, context: str, name: str, calls: list[str]) -> None:
        super().__init__(context, name, calls)
        self.collect_bind_layer_weights()
        self.bound_name = self.weight_id.name


class TPSelfBinding(SelfBinding):
    pass


class ShortSelfBinding(SelfBinding, tp=TPSelfBinding):
    pass


@pytest.mark.parametrize("model_type", MODES)
@pytest.mark.parametrize("form", [SelfBinding, ShortSelfBinding])
def test_a_constructor_that_collects_itself(form: type[SelfBinding], model_type: str) -> None:
    calls: list[str] = []
    with building(WEIGHTS, model_type) as build:
        layer = form("model", "custom", calls)
    assert calls == ["base collects"]
    assert layer.bound_name == "model.custom.weight"
    assert build.graph is not None
    assert list(build.graph.ir_graph.initializers) == ["model.custom.weight"]


def test_collecting_again_does_nothing() -> None:
    calls: list[str] = []
    with building(WEIGHTS):
        layer = Short("model", "custom", calls)
        layer.collect_bind_layer_weights()
    assert calls == ["base collects"]


def test_each_layer_of_a_class_binds_its_own() -> None:
    calls: list[str] = []
    names = ["model.custom.0", "model.custom.1"]
    with building({f"{name}.weight": WEIGHT for name in names}) as build:
        for index in range(2):
            Short("model", f"custom.{index}", calls)
    assert calls == ["base collects"] * 2
    assert build.graph is not None
    assert sorted(build.graph.ir_graph.initializers) == [f"{name}.weight" for name in names]


# ---- bad input ----------------------------------------------------------------------------------------------


def test_an_unknown_model_type() -> None:
    with pytest.raises(ConfigError, match=r"Invalid model_type shrad, options: \['shard', 'tp'\]"):
        Build(model_type="shrad")


def test_a_layer_outside_of_a_build() -> None:
    with pytest.raises(PopTransformerError, match="build_model_graph"):
        Short("model", "custom", [])


def test_a_layer_without_a_call() -> None:
    class Silent(BaseLayer):
        pass

    with building({}) as build, pytest.raises(NotImplementedError, match="Silent must define __call__"):
        Silent("model", "custom")(build.graph)
