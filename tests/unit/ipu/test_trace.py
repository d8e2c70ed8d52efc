# SPDX-License-Identifier: Apache-2.0
"""Work, weights and caches found in real graphs, whole and divided among replicas."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from poptransformer.build import Build, use_build
from poptransformer.errors import ConfigError, GraphError
from poptransformer.ipu.segments import Segments, StepGraph
from poptransformer.ipu.trace import Sizes, trace
from poptransformer.ipu.work import Attention, Collective, Numbers, Op, Product
from poptransformer.models import model_class_for
from poptransformer.planning import build_model, built_model
from poptransformer.planning.model import numbers_of
from poptransformer.recipe import Recipe
from poptransformer.runtime.compiled import compile_model, compile_replicas
from tests.unit.ipu.tiny import GPT2, LLAMA, config

SIZES = Sizes(batch=2, tokens=5, slots=64, attended=40)


def segments(raw: dict[str, Any], precision: Any = "fp16", sizes: Sizes = SIZES, replicas: int = 1) -> Segments:
    return build_model(config(raw), Recipe.of(precision), max_length=64).sharded(replicas).segments(sizes)


def products(ops: tuple[Op, ...]) -> dict[str, tuple[int, int, int]]:
    return {
        op.name.split("/")[-2]: (op.work.rows, op.work.depth, op.work.columns)
        for op in ops
        if isinstance(op.work, Product)
    }


def weight_bytes(step: Segments) -> int:
    found = {weight.name: weight.nbytes for part in step.all() for op in part.ops for weight in op.weights}
    return sum(found.values())


def test_products_of_a_llama_block() -> None:
    step = segments(LLAMA)
    assert products(step.blocks[0].ops) == {
        "q_proj": (10, 96, 96),
        "k_proj": (10, 96, 48),
        "v_proj": (10, 96, 48),
        "o_proj": (10, 96, 96),
        "gate_proj": (10, 96, 160),
        "up_proj": (10, 96, 160),
        "down_proj": (10, 160, 96),
    }
    attention = next(op for op in step.blocks[2].ops if isinstance(op.work, Attention))
    assert attention.work == Attention(2, 5, 40, 6, 3, 16)
    assert [(cache.rows, cache.columns) for cache in attention.caches] == [(2 * 3 * 64, 16)] * 2
    assert products(step.after.ops) == {"lm_head": (2, 96, 320)}
    assert len(step.blocks) == 6
    assert not step.is_tied
    assert step.hidden == 10 * 96


@pytest.mark.parametrize("raw", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_all_parameters_are_counted(raw: dict[str, Any]) -> None:
    """Against transformers' own count."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**{key: value for key, value in raw.items() if key != "torch_dtype"})
    model = AutoModelForCausalLM.from_config(made)
    assert weight_bytes(segments(raw)) == 2 * sum(parameter.numel() for parameter in model.parameters())


def test_gpt2s_head_is_tied() -> None:
    assert segments(GPT2).is_tied


@pytest.mark.parametrize(
    ("precision", "bits", "math"),
    [("fp32", 32, "fp32"), ("fp16", 16, "fp16"), ("int8", 8, "fp16"), ("int4", 4, "fp16"), ("fp8", 8, "fp8"),
     ("fp8_weight", 8, "fp16")],
)  # fmt: skip
def test_precisions(precision: str, bits: int, math: str) -> None:
    step = segments({**LLAMA, "torch_dtype": "float32"}, precision)
    op = next(op for op in step.blocks[0].ops if "q_proj" in op.name)
    assert isinstance(op.work, Product)
    assert (op.work.weight_bits, op.work.math) == (bits, math)


def test_a_recipe_by_names() -> None:
    step = segments(LLAMA, {"*q_proj*": "int4", "*": "fp16"})
    bits = {op.name.split("/")[-2]: op.work.weight_bits for op in step.blocks[1].ops if isinstance(op.work, Product)}
    assert bits["q_proj"] == 4
    assert bits["k_proj"] == 16


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("precision", ["int8", "int4", "fp8_weight"])
@pytest.mark.parametrize("raw", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_planned_work_is_that_of_the_compiled_graph(raw: dict[str, Any], precision: str, replicas: int) -> None:
    """A graph that is really quantized has the bits that were planned, and as many bytes but for padding."""
    from poptransformer.checkpoint import random_checkpoint

    with use_build(Build(precision=precision, model_type="tp", num_replicas=replicas)):
        cls = model_class_for(config(raw))
        model = cls.from_checkpoint(random_checkpoint(dict(raw)), max_length=64)
    model.build_graph()
    compiled = compile_model(model, fuse=False)
    found = StepGraph(compiled.model.graph, numbers_of(Recipe.of(precision), False), {}, replicas).segments(SIZES)
    planned = segments(raw, precision, replicas=replicas)
    kinds = Product | Attention | Collective
    for one, other in zip(found.all(), planned.all(), strict=True):
        works = [[op.work for op in part.ops if isinstance(op.work, kinds)] for part in (one, other)]
        assert works[0] == works[1]
    assert weight_bytes(found) == pytest.approx(weight_bytes(planned), rel=0.08)


@pytest.mark.parametrize("replicas", [1, 3])
def test_the_model_that_ran_is_the_one_that_is_costed(replicas: int) -> None:
    """Its own checkpoint's graph, as it was before the passes; what was compiled stays as it is."""
    from poptransformer.checkpoint import random_checkpoint

    with use_build(Build(precision="int8", model_type="tp", num_replicas=replicas)):
        cls = model_class_for(config(GPT2))
        model = cls.from_checkpoint(random_checkpoint({**GPT2, "n_layer": 2}), max_length=32, layer_per_ipu=(1, 1))
    compiled = compile_replicas(model)
    before = [node.op_type for node in compiled.model.graph]
    ran = built_model(model)
    found = ran.sharded(replicas).segments(SIZES)
    assert found == segments({**GPT2, "n_layer": 2}, "int8", replicas=replicas)
    assert (ran.blocks, ran.max_length) == (2, 32)
    assert [node.op_type for node in compiled.model.graph] == before
    assert "FusedLinear" in before


def test_a_fused_graph_is_refused() -> None:
    from poptransformer.checkpoint import random_checkpoint

    with use_build(Build(precision="fp16")):
        model = model_class_for(config(LLAMA)).from_checkpoint(random_checkpoint(dict(LLAMA)), max_length=64)
    model.build_graph()
    with pytest.raises(GraphError, match="before fuse"):
        trace(compile_model(model).model.graph, SIZES, Numbers())


def test_a_graph_without_blocks_is_refused() -> None:
    graph = ir.Graph([], [], nodes=[], name="empty", opset_imports={"": 24})
    with pytest.raises(GraphError, match="no blocks"):
        StepGraph(graph, Numbers(), {}).segments(SIZES)


# -- replicas -----------------------------------------------------------------------------------------------------


def test_three_replicas_of_llama() -> None:
    """Columns of the first products, rows of the last ones with an all-reduce, heads divided: Megatron's scheme."""
    step = segments(LLAMA, replicas=3)
    ops = step.blocks[1].ops
    assert products(ops) == {
        "q_proj": (10, 96, 32),
        "k_proj": (10, 96, 16),
        "v_proj": (10, 96, 16),
        "o_proj": (10, 32, 96),
        "gate_proj": (10, 96, 64),  # 160 columns are cut at multiples of 32
        "up_proj": (10, 96, 64),
        "down_proj": (10, 64, 96),
    }
    collectives = [op for op in ops if isinstance(op.work, Collective)]
    assert [op.name.split("/")[-2] for op in collectives] == ["o_proj", "down_proj"]
    assert {op.work for op in collectives} == {Collective("all_reduce", 10 * 96, 3)}
    attention = next(op for op in ops if isinstance(op.work, Attention))
    assert attention.work == Attention(2, 5, 40, 2, 1, 16)
    assert attention.caches[0].rows == 2 * 64


def test_all_replicas_get_all_logits() -> None:
    """As in the engine, whose replicas all pick the next token themselves."""
    collectives = [op.work for op in segments(LLAMA, replicas=3).after.ops if isinstance(op.work, Collective)]
    assert collectives == [Collective("all_gather", 2 * 3 * 128, 3)]  # 320 tokens, filled up


def test_each_replica_holds_its_part() -> None:
    whole, part = (
        weight_bytes(segments({**LLAMA, "intermediate_size": 192, "vocab_size": 384}, replicas=n)) for n in (1, 3)
    )
    assert part == pytest.approx(whole / 3, rel=0.02)


def test_key_value_heads_are_repeated_where_replicas_are_more() -> None:
    step = segments(LLAMA, replicas=6)
    attention = next(op for op in step.blocks[1].ops if isinstance(op.work, Attention))
    assert (attention.work.heads, attention.work.kv_heads) == (1, 1)


def test_gpt2s_fused_projection_is_divided() -> None:
    step = segments(GPT2, sizes=Sizes(), replicas=2)
    assert products(step.blocks[1].ops)["c_attn"] == (1, 96, 144)
    assert sum(isinstance(op.work, Collective) for op in step.blocks[1].ops) == 2


def test_heads_that_cannot_be_divided() -> None:
    with pytest.raises(ConfigError) as error:
        segments({**GPT2, "n_head": 25, "n_embd": 100}, replicas=4)
    assert str(error.value) == (
        "num_replicas=4 does not divide 25 heads; valid: 1, 5, 25; power of two: 1 (transformer.h.0.attn)"
    )
