# SPDX-License-Identifier: Apache-2.0
"""Weights between a checkpoint and the graph: what a layer may ask for, and what it is told where that is wrong."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from poptransformer.build import Build, use_build
from poptransformer.checkpoint import StateDict
from poptransformer.checkpoint.errors import MissingWeightError, ShapeMismatchError
from poptransformer.errors import ConfigError, GraphError
from poptransformer.graph import Graph
from poptransformer.layers import BaseLayer, Embedding, LayerNorm, Linear, LMHead, RMSLayerNorm
from tests.unit.layers.helpers import building

VECTOR = np.arange(4, dtype=np.float32)


def test_a_missing_weight_names_the_nearest_keys() -> None:
    weights = {"model.layers.0.norm.weight": VECTOR, "model.layers.1.norm.weight": VECTOR}
    with building(weights) as build, pytest.raises(MissingWeightError) as caught:
        RMSLayerNorm("model.layers.0", "nrm", 4)
    message = str(caught.value)
    assert "weight 'model.layers.0.nrm.weight' is not in a test checkpoint (2 tensors)" in message
    assert "nearest weights: 'model.layers.0.norm.weight'" in message
    assert build.graph is not None
    assert not build.graph.ir_graph.initializers, "nothing random takes its place"


def test_a_missing_bias_is_an_error_of_the_layer_that_wants_it() -> None:
    weight = np.zeros((3, 4), np.float32)
    with building({"fc.weight": weight}):
        assert Linear(None, "fc", 4, 3, use_bias=False).use_bias is False
    with building({"fc.weight": weight}), pytest.raises(MissingWeightError, match="fc.bias"):
        Linear(None, "fc", 4, 3)


@pytest.mark.parametrize("make", [LayerNorm, RMSLayerNorm])
def test_a_wrong_shape_names_both(make: type[BaseLayer]) -> None:
    with (
        building({"norm.weight": VECTOR, "norm.bias": VECTOR}),
        pytest.raises(ShapeMismatchError, match=r"norm.weight.* has shape \[4\], but the model expects \[5\]"),
    ):
        make(None, "norm", 5)


def test_a_weight_bound_twice() -> None:
    with building({"norm.weight": VECTOR}):
        RMSLayerNorm(None, "norm", 4)
        with pytest.raises(GraphError, match=r"norm.weight is bound twice\. Give each layer its own"):
            RMSLayerNorm(None, "norm", 4)


def test_a_tied_head_reads_the_embeddings_table() -> None:
    with building({"wte.weight": np.zeros((5, 4), np.float32)}) as build:
        wte = Embedding(None, "wte", 5, 4)
        head = LMHead(None, "lm_head", 5, 4, tie_weight=wte)
    assert head.weight_id is wte.weight_id
    assert build.graph is not None
    assert list(build.graph.ir_graph.initializers) == ["wte.weight"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_graph_sees_fp32_over_the_stored_bytes(dtype: type) -> None:
    stored = np.arange(6).reshape(2, 3).astype(dtype)
    with building({"x.weight": stored}):
        layer = BaseLayer(None, "x")
        value = layer.add_initialized_input_tensor(layer.get_param_from_state_dict("x.weight").T)
    assert (value.name, value.dtype, value.shape) == ("x.weight", ir.DataType.FLOAT, ir.Shape([3, 2]))
    tensor = value.const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), stored.T.astype(np.float32))
    assert np.shares_memory(tensor.array, stored) == (dtype is not np.float64)


def test_integers_stay_integers() -> None:
    with building({}):
        value = BaseLayer(None, "x").add_initialized_input_tensor(np.arange(3), "table")
    assert (value.name, value.dtype) == ("table", ir.DataType.INT64)


def test_asking_whether_a_weight_is_there_reads_nothing() -> None:
    def load() -> np.ndarray:
        raise AssertionError("the weight was read")

    with use_build(Build(graph=Graph(), state_dict=StateDict.wrap({"fc.weight": load}))):
        layer = BaseLayer(None, "fc")
        assert layer.has_param("fc.weight")
        assert not layer.has_param("fc.bias")


def test_popart_variable_settings_are_taken_and_others_are_not() -> None:
    with building({}):
        layer = BaseLayer(None, "x")
        layer.add_initialized_input_tensor(VECTOR, "a", vs_type="consecutive", group_size=1)
        with pytest.raises(ConfigError, match=r"Unknown variable settings \['vs_tpye'\] for b"):
            layer.add_initialized_input_tensor(VECTOR, "b", vs_tpye="consecutive")


def test_a_loaded_weight_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "poptransformer"), building({"norm.weight": VECTOR}):
        RMSLayerNorm(None, "norm", 4)
    assert "loading norm.weight with shape (4,), dtype float32." in caplog.messages


def test_a_build_without_a_graph_says_where_layers_belong() -> None:
    with (
        use_build(Build(state_dict=StateDict.wrap({"norm.weight": VECTOR}))),
        pytest.raises(GraphError, match="layers belong in build_model_graph"),
    ):
        RMSLayerNorm(None, "norm", 4)
