# SPDX-License-Identifier: Apache-2.0
"""What a model class must do: return logits, whether or not it picks the tokens that get them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from poptransformer.build import Build, use_build
from poptransformer.checkpoint import random_checkpoint
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError, GraphError, PopTransformerError
from poptransformer.layers import Embedding, LMHead
from poptransformer.models.base_model import HFDecBaseModel

CONFIG = {"model_type": "bigram", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2}


class Bigram(HFDecBaseModel):
    """An embedding and a head."""

    picks = True

    def build_model_graph(self) -> ir.Value:
        embedding = Embedding(None, "embedding", 11, 8)
        x = embedding(self.graph, self.step.input_ids)
        return LMHead(None, "lm_head", 11, 8)(self.graph, self.step.chosen(x) if self.picks else x)


class EveryToken(Bigram):
    picks = False


class Forgetful(Bigram):
    def build_model_graph(self) -> ir.Value:
        super().build_model_graph()
        return None  # type: ignore[return-value]


class Unfinished(HFDecBaseModel):
    pass


def made(model_class: type[HFDecBaseModel], **settings: Any) -> HFDecBaseModel:
    with use_build(Build()):
        model = model_class.from_checkpoint(random_checkpoint(CONFIG, seed=3), max_length=32, **settings)
    model.build_graph()
    return model


def test_logits_of_every_token_are_cut_down() -> None:
    ids = np.array([[1, 2, 3], [4, 5, 0]])
    picked, cut = Engine.from_model(made(Bigram)), Engine.from_model(made(EveryToken))
    np.testing.assert_array_equal(picked.logits(ids, [3, 2])[0], cut.logits(ids, [3, 2])[0])
    assert picked.generate([1, 2, 3], max_new_tokens=6) == cut.generate([1, 2, 3], max_new_tokens=6)


def test_a_forgotten_return() -> None:
    with pytest.raises(GraphError, match="Forgetful.build_model_graph returned None; expected the logits"):
        made(Forgetful)


def test_a_forgotten_method() -> None:
    with pytest.raises(NotImplementedError, match="Unfinished must define build_model_graph"):
        made(Unfinished)


@pytest.mark.parametrize("placed", [[1, 2], [1]])
def test_placement_must_add_up(placed: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"layer_per_ipu sums to \d, model has 2 layers; try \["):
        made(Bigram, layer_per_ipu=placed)


def test_placement_has_no_negative_numbers() -> None:
    with pytest.raises(ConfigError, match=r"0 or more, that add up to 2, found \[2, -1, 1\]"):
        made(Bigram, layer_per_ipu=[2, -1, 1])


def test_a_model_outside_of_a_build() -> None:
    with pytest.raises(PopTransformerError, match="No model is being built here"):
        Bigram(hf_model_name="anything")
