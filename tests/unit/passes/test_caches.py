# SPDX-License-Identifier: Apache-2.0
"""The type that caches are stored in: which states take it, and which are left alone."""

from __future__ import annotations

import logging
from typing import Any

import onnx_ir as ir
import pytest

import poptransformer
from poptransformer import ops, passes
from poptransformer.engine import Engine
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.models import LLAMA2DecModel
from poptransformer.state import BATCH, SLOTS, StateSpec
from poptransformer.step import KVCache, Step
from tests.unit.runtime import tiny

K, H = 2, 8  # kv heads and head dimension of `tiny`'s llama
PROMPT = tiny.PROMPTS[0]


class WithMore(LLAMA2DecModel):
    """Llama with states of other kinds beside its caches."""

    def build_model_graph(self) -> ir.Value:
        logits = super().build_model_graph()
        count = self.step.state(StateSpec("past.count", "present.count", "int64", (BATCH,)))
        count.update(ops.add(self.graph, count.past, self.step.lengths))
        table = self.step.state(StateSpec("past.table", "present.table", "float32", (BATCH, SLOTS, 2)))
        table.update(ops.add(self.graph, table.past, 1.0))
        return logits


def test_states_that_are_no_caches_stay_as_they_are() -> None:
    with tiny.use_build(tiny.Build()):
        model = WithMore(hf_model_name=str(tiny.folder()), max_length=64, fp8_cache=True)
    model.build_graph()
    engine = Engine.from_model(model)
    found = {state.past: state.dtype for state in engine.runtime.compiled.info.states}
    assert found.pop("past.count") == "int64"
    assert found.pop("past.table") == "float32"
    assert list(found.values()) == ["uint8"] * 4
    expected = poptransformer.load(tiny.folder(), fp8_cache=True).generate(PROMPT, max_new_tokens=5)
    assert engine.generate(PROMPT, max_new_tokens=5) == expected


def test_a_configuration_asks_for_8_bits() -> None:
    session = tiny.compiled_session(tiny.model(fp8_cache=True))
    assert {state.dtype for state in session.engine.runtime.compiled.info.states} == {"uint8"}
    session.run(tiny.inputs(list(PROMPT)))
    expected = poptransformer.load(tiny.folder(), fp8_cache=True)
    ids = expected.generate(list(PROMPT), max_new_tokens=6, ignore_eos=True)
    assert session.anchor_arrays["output_ids"].tolist() == [ids]


def attention(read: bool = False, initial: float = 0.0) -> tuple[ir.Model, list[StateSpec]]:
    """One attention over one cache; `read` lets another node see its keys."""
    graph = Graph()
    step = Step(graph)

    def state(part: str) -> Any:
        return step.state(
            StateSpec(f"past.{part}", f"present.{part}", "float32", (BATCH, K, SLOTS, H), initial, in_place=True)
        )

    cache = KVCache(state("key"), state("value"))
    query, key, value = (
        graph.input(name, ir.DataType.FLOAT, ["batch", "tokens", heads * H])
        for name, heads in (("query", 4), ("key", K), ("value", K))
    )
    pasts = cache.key.past, cache.value.past, step.past_lengths
    output, *presents = ops.cached_attention(graph, query, key, value, *pasts, num_heads=4, num_kv_heads=K, scale=1.0)
    if read:
        graph.output(ops.relu(graph, cache.key.past), "seen")
    for part, present in zip((cache.key, cache.value), presents, strict=True):
        part.update(present)
    step.finish(output)
    return ir.Model(graph.ir_graph, ir_version=IR_VERSION), step.states


def cached_attention(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == "CachedAttention")
    return node


@pytest.mark.parametrize(("dtype", "stored"), [("uint8", ir.DataType.UINT8), ("float16", ir.DataType.FLOAT16)])
def test_a_cache_takes_the_type(dtype: str, stored: ir.DataType) -> None:
    model, states = attention()
    assert [state.dtype for state in passes.store_caches(model, states, dtype)] == [dtype, dtype]
    node = cached_attention(model)
    assert [value.dtype for value in node.inputs[3:5]] == [stored] * 2
    assert [value.dtype for value in node.outputs] == [ir.DataType.FLOAT, stored, stored]
    assert ("cache_format" in node.attributes) == (dtype == "uint8")


@pytest.mark.parametrize("different", [{"read": True}, {"initial": 1.0}], ids=str)
def test_a_cache_that_is_more_than_a_cache_stays_float(
    caplog: pytest.LogCaptureFixture, different: dict[str, Any]
) -> None:
    model, states = attention(**different)
    with caplog.at_level(logging.WARNING):
        assert passes.store_caches(model, states, "uint8") == tuple(states)
    assert "past.key, past.value keep 32 bits" in caplog.text
    node = cached_attention(model)
    assert {value.dtype for value in (*node.inputs[:5], *node.outputs)} == {ir.DataType.FLOAT}
    assert "cache_format" not in node.attributes
