# SPDX-License-Identifier: Apache-2.0
"""The files on disk as ONNX sees them: checker, strict inference, conventions, provenance."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import poptransformer
from poptransformer.graph import DOMAIN, IR_VERSION, Graph, function_names, function_spec, onnx_function
from poptransformer.passes.chain import CHAIN
from poptransformer.passes.fuse_linear import FUSED_LINEAR
from tests.unit.runtime import tiny

FAMILIES = ["llama", "gpt2"]
FILES = ["model.onnx", "decoder.onnx", "generator.onnx"]
BETWEEN_STAGES = {"Send", "Recv"}  # test_stages.py; the whole graph is saved, and cut when it is opened
QUANTIZED = {"QuantizedLinear", "QuantizedEmbedding", "RoundToFloat8"}  # test_quantized_models.py
IN_NO_MODEL_YET = {"WKV"}  # tests/custom_ops compares it with its body


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FILES)
def path(request: pytest.FixtureRequest, family: str) -> Path:
    return tiny.saved(family) / request.param


def proto(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            nodes += all_nodes(attribute.g) if attribute.HasField("g") else []
    return nodes


@pytest.mark.parametrize("name", function_names())
def test_every_function_is_valid_onnx(name: str) -> None:
    graph = Graph()
    graph.output(graph.input("x", ir.DataType.FLOAT, [1]), "y")
    functions = [onnx_function(name, variant) for variant in function_spec(name).variants()]
    model = ir.Model(graph.ir_graph, ir_version=IR_VERSION, functions=functions)
    assert len(model.functions) == len(functions)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def test_the_saved_models_use_every_function() -> None:
    """So that the checks of the files below have seen each of them inferred with real types."""
    paths = [tiny.saved(family) / file for family in FAMILIES for file in (*FILES, "sampler.onnx")]
    paths += [replicas() / file for file in FILES]
    # What a function's body calls has its overload as a part of its name.
    used = {function.name.partition("_")[0] for path in paths for function in proto(path).functions}
    assert used | QUANTIZED | BETWEEN_STAGES | IN_NO_MODEL_YET == {*function_names(), FUSED_LINEAR, CHAIN}


@functools.cache
def replicas() -> Path:
    """A saved model of two replicas, with an uneven vocabulary."""
    engine = poptransformer.load(tiny.folder("gpt2"), model_type="tp", num_replicas=2)
    return engine.save(tiny.new_folder("replicas") / "model")


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("file", FILES)
def test_the_graph_of_replicas(file: str, replica: int, tmp_path: Path) -> None:
    """It is a valid model together with any replica's weights."""
    shutil.copy(replicas() / file, tmp_path)
    shutil.copy(replicas() / f"replica-{replica}" / "weights.bin", tmp_path)
    test_full_check(tmp_path / file)
    test_strict_shape_inference(tmp_path / file)


def test_what_tells_replicas_apart_is_in_their_files() -> None:
    initializers = proto(replicas() / "model.onnx").graph.initializer
    outside = {tensor.name for tensor in initializers if tensor.data_location == tensor.EXTERNAL}
    assert {"transformer.wte.token_range", "transformer.h.0.attn.c_proj.bias"} <= outside
    assert all(tensor.name.startswith("const_") for tensor in initializers if tensor.name not in outside)


def test_full_check(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)


def test_strict_shape_inference(path: Path) -> None:
    target = tiny.new_folder("inferred") / "model.onnx"
    onnx.shape_inference.infer_shapes_path(str(path), str(target), check_type=True, strict_mode=True, data_prop=True)
    inferred = onnx.load(target, load_external_data=False)
    assert {value.name for value in inferred.graph.output} == {value.name for value in proto(path).graph.output}


def test_versions_and_domains(path: Path) -> None:
    model = proto(path)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 24, DOMAIN: 1}
    assert model.ir_version == 11
    assert {opset.domain: opset.version for function in model.functions for opset in function.opset_import}[""] == 24
    assert {node.domain for node in all_nodes(model.graph)} == {"", DOMAIN}


def test_provenance(path: Path, family: str) -> None:
    model = proto(path)
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    config = json.loads((tiny.folder(family) / "config.json").read_text())
    assert (model.producer_name, model.producer_version) == ("poptransformer", poptransformer.__version__)
    assert properties["poptransformer.config"] == config
    assert properties["poptransformer.source"] == str(tiny.folder(family))
    assert properties["poptransformer.precision"] == "fp32"
    assert properties["poptransformer.max_length"] == 64
    versions = properties["poptransformer.versions"]
    assert {"onnx", "onnx-ir", "onnxruntime", "poptransformer"} <= set(versions)
    assert versions["onnx"] == onnx.__version__


def signature(values: list[onnx.ValueInfoProto]) -> dict[str, tuple[str, list[int | str]]]:
    """Name -> dtype and dimensions."""
    return {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def test_inputs_and_outputs_of_the_step(family: str) -> None:
    graph = proto(tiny.saved(family) / "model.onnx").graph
    cache = ("FLOAT", ["batch", 2 if family == "llama" else 4, "slots", 8])
    names = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert signature(graph.input) == {
        "input_ids": ("INT64", ["batch", "tokens"]),
        "lengths": ("INT64", ["batch"]),
        "past_lengths": ("INT64", ["batch"]),
        "logit_positions": ("INT64", ["batch", "chosen"]),
    } | {f"past_key_values.{name}": cache for name in names}
    assert signature(graph.output) == {"logits": ("FLOAT", ["batch", "chosen", tiny.VOCABULARY])} | {
        f"present.{name}": cache for name in names
    }


def test_the_decoder_is_the_step_that_chooses_its_tokens(family: str) -> None:
    step, decoder = (proto(tiny.saved(family) / file).graph for file in ("model.onnx", "decoder.onnx"))
    floats = ("temperature", "top_p", "min_p", "repetition_penalty")
    assert signature(decoder.input) == signature(step.input) | {"history": ("INT64", ["batch", "history"])} | {
        name: ("FLOAT" if name in floats else "INT64", ["batch"]) for name in (*floats, "top_k", "seed", "step")
    }
    presents = {name: value for name, value in signature(step.output).items() if name != "logits"}
    counters = {name: ("INT64", ["batch"]) for name in ("token", "total_lengths", "next_step")}
    assert signature(decoder.output) == presents | counters


def test_inputs_and_outputs_of_the_generator(family: str) -> None:
    graph = proto(tiny.saved(family) / "generator.onnx").graph
    inputs, defaults = signature(graph.input), {tensor.name for tensor in graph.initializer}
    assert inputs["input_ids"] == ("INT64", ["batch", "prompt"])
    assert set(inputs) - defaults == {"input_ids"}  # all others are optional
    assert set(inputs) & defaults == {
        *("lengths", "max_new_tokens", "stop_token_ids"),
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
    }
    assert signature(graph.output) == {
        "output_ids": ("INT64", ["batch", "generated"]),
        "output_lengths": ("INT64", ["batch"]),
    }


def test_weights_lie_outside_on_page_boundaries_and_are_shared(family: str) -> None:
    folder = tiny.saved(family)
    places = {}
    for file in FILES:
        large = [t for t in proto(folder / file).graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places[file] = {t.name: {entry.key: entry.value for entry in t.external_data} for t in large}
    assert places["model.onnx"] == places["decoder.onnx"] == places["generator.onnx"]
    assert {place["location"] for place in places["model.onnx"].values()} == {"weights.bin"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places["model.onnx"].values())
    assert (folder / "model.onnx").stat().st_size < 60_000


def test_weights_keep_the_names_of_the_checkpoint() -> None:
    names = {tensor.name for tensor in proto(tiny.saved("llama") / "model.onnx").graph.initializer}
    assert {name for name in tiny.torch_model().state_dict() if name not in names} == set()


def test_nodes_show_their_scope_and_nothing_of_the_tools(path: Path) -> None:
    """What a reader sees in a viewer: every node under its layer, no marks that a builder left."""
    model = proto(path)
    nodes = all_nodes(model.graph)
    assert {node.name for node in nodes if "/" not in node.name} <= {
        "Chain",
        "Constant",
        "Loop",
        "Transpose",
        "Shape",
        "Concat",
        "Reshape",
    }
    assert not any(entry.key.startswith("pkg.") for node in nodes for entry in node.metadata_props)
    assert not any(e.key.startswith("pkg.") for f in model.functions for node in f.node for e in node.metadata_props)
