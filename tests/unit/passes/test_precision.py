# SPDX-License-Identifier: Apache-2.0
"""The dtype that weights are stored in, and that arithmetic stays fp32 on the rounded weights."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

import poptransformer
from poptransformer import ops, passes
from poptransformer.engine import Engine
from poptransformer.errors import PopTransformerError
from poptransformer.graph import IR_VERSION, Graph
from poptransformer.runtime import SessionSettings
from tests.unit.runtime import tiny

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
IR = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
CHECKPOINTS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def rounded_reference(folder: object, precision: str) -> np.ndarray:
    """PyTorch's fp32 logits `[L, V]` with the matrices rounded to `precision`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and precision != "fp32":
                parameter.copy_(parameter.to(TORCH[precision]).float())
        return model(torch.tensor([tiny.PROMPTS[2]])).logits[0].numpy()


@pytest.mark.parametrize("precision", list(TORCH))
@pytest.mark.parametrize("checkpoint", list(CHECKPOINTS))
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gpt2", True)])
def test_logits_are_those_of_rounded_weights(family: str, tied: bool, checkpoint: str, precision: str) -> None:
    folder = tiny.folder(family, CHECKPOINTS[checkpoint], tied)
    engine = poptransformer.load(folder, precision=precision)
    reference = rounded_reference(folder, precision)
    np.testing.assert_allclose(engine.logits(tiny.PROMPTS[2])[0], reference, atol=1e-4, rtol=0)
    if precision != "fp32":
        compiled = engine.runtime.compiled
        bodies = Engine(compiled, engine.checkpoint, SessionSettings(use_native=False))
        np.testing.assert_allclose(bodies.logits(tiny.PROMPTS[2])[0], reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", list(TORCH))
@pytest.mark.parametrize("checkpoint", list(CHECKPOINTS))
def test_matrices_take_the_dtype_and_vectors_do_not(checkpoint: str, precision: str) -> None:
    engine = poptransformer.load(tiny.folder("llama", CHECKPOINTS[checkpoint]), precision=precision)
    weights = {n: v for n, v in engine.runtime.compiled.model.graph.initializers.items() if n.endswith(".weight")}
    # fp32 means exact: 16-bit weights stay as they are, for widening them loses nothing.
    expected = IR[checkpoint if precision == "fp32" else precision]
    assert {value.dtype for value in weights.values() if len(value.shape) == 2} == {expected}
    assert {value.dtype for value in weights.values() if len(value.shape) == 1} == {ir.DataType.FLOAT}
    assert all(value.const_value.dtype == value.dtype for value in weights.values())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_tied_embedding_is_stored_once(precision: str) -> None:
    engine = poptransformer.load(tiny.folder("gpt2", tied=True), precision=precision)
    graph = engine.runtime.compiled.model.graph
    table = graph.initializers["transformer.wte.weight"]
    assert sorted(use.node.op_type for use in table.uses()) == ["FusedLinear", "Gather"]
    assert table.dtype == IR[precision]
    assert not [name for name in graph.initializers if name.startswith("lm_head")]
    weights = (engine.save(tiny.new_folder("tied") / "model") / "weights.bin").stat().st_size
    matrices = sum(p.numel() for p in tiny.torch_model("gpt2", True).parameters() if p.ndim == 2)
    assert weights < 2 * matrices + 4096 * len(graph.initializers)


def test_half_precision_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "poptransformer"):
        poptransformer.load(tiny.folder(), precision="fp16")
    assert "casting model to fp16" in caplog.messages


def test_a_checkpoint_beyond_half_precision_is_refused() -> None:
    """bf16 checkpoints reach 3e38; infinities in a model are found by nobody."""
    for dtype in (torch.bfloat16, torch.float32):
        model = type(tiny.torch_model())(tiny.torch_model().config).to(dtype)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] = -7e4
        folder = tiny.new_folder("overflow")
        model.save_pretrained(folder)
        with pytest.raises(PopTransformerError, match=r"layers\.1\.mlp\.up_proj\.weight holds values beyond 65504"):
            poptransformer.load(folder, precision="fp16").logits([1, 2])
        assert np.isfinite(poptransformer.load(folder, precision="bf16").logits([1, 2])).all()


def test_tables_with_other_uses_stay_fp32() -> None:
    graph = Graph()
    table = graph.initializer(np.ones((4, 3), np.float32), "table")
    used = graph.initializer(np.ones((4, 3), np.float32), "used")
    indices = graph.input("indices", ir.DataType.INT64, [2])
    total = ops.add(graph, ops.gather(graph, table, indices), ops.gather(graph, used, indices))
    graph.output(ops.add(graph, total, ops.reduce_max(graph, used, [0])), "y")
    passes.store_weights(ir.Model(graph.ir_graph, ir_version=IR_VERSION), "fp16")
    assert (table.dtype, used.dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT)
    gathers = [node for node in graph.ir_graph if node.op_type == "Gather"]
    assert [node.outputs[0].dtype for node in gathers] == [ir.DataType.FLOAT16, ir.DataType.FLOAT]
    (cast,) = [node for node in graph.ir_graph if node.op_type == "Cast"]
    assert cast.outputs[0].dtype == ir.DataType.FLOAT


def test_a_lookup_that_is_an_output_is_widened() -> None:
    graph = Graph()
    table = graph.initializer(np.full((4, 3), 1.5, np.float32), "table")
    graph.output(ops.gather(graph, table, graph.input("indices", ir.DataType.INT64, [2])), "y")
    passes.store_weights(ir.Model(graph.ir_graph, ir_version=IR_VERSION), "bf16")
    (output,) = graph.ir_graph.outputs
    assert (output.name, output.dtype, output.producer().op_type) == ("y", ir.DataType.FLOAT, "Cast")


def test_integer_weights_stay() -> None:
    graph = Graph()
    table = graph.initializer(np.ones((4, 3), np.int8), "table")
    graph.output(ops.gather(graph, table, graph.input("indices", ir.DataType.INT64, [2])), "y")
    passes.store_weights(ir.Model(graph.ir_graph, ir_version=IR_VERSION), "fp16")
    assert table.dtype == ir.DataType.INT8
