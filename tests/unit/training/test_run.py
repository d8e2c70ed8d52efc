# SPDX-License-Identifier: Apache-2.0
"""`run`: training that continues exactly, evaluation, params, and what the command line refuses."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from safetensors.torch import save_file

from poptransformer import layers, nn
from poptransformer.graph import Graph
from poptransformer.program import Program
from poptransformer.training import PyTorchBaseModel, get_params, run
from poptransformer.training.checkpoints import WEIGHTS, checkpoints_of
from tests.unit.training.tiny_run import Model, eval_data, losses, train, train_data, write


class Dies(Model):
    dies_at = 15  # between the checkpoints of steps 12 and 16, in the third epoch


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb", "SGD"])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path: Path, optimizer: str) -> None:
    rate = {"scheduler": "Linear", "initial_learning_rate": 0.02, "end_learning_rate": 0.0, "total_iters": 23}
    section = {"optimizer_type": optimizer, "learning_rate": [rate]}
    train(write(tmp_path / "whole", optimizer=section))
    killed = write(tmp_path / "killed", optimizer=section)
    with pytest.raises(SystemExit):
        train(killed, model=Dies)
    assert [path.name for path in checkpoints_of(tmp_path / "killed" / "out")][-1] == "checkpoint_12"
    train(killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "out" / "checkpoint_23" / WEIGHTS) for name in ("whole", "killed"))
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name])


def test_steps_counts_from_where_the_run_is(tmp_path: Path) -> None:
    path = write(tmp_path)
    train(path, "--steps", "5")
    train(path, "--steps", "6")
    assert [checkpoint.name for checkpoint in checkpoints_of(tmp_path / "out")][-1] == "checkpoint_11"
    train(path, "--max_steps", "11")
    assert losses(tmp_path).count("\n") == 12  # a line of names, and nothing was trained again


def test_a_run_that_was_killed_before_its_last_evaluation_evaluates(tmp_path: Path) -> None:
    path = write(tmp_path)
    train(path)
    train(path, mode="train_and_eval")
    results = json.loads((tmp_path / "out" / "train_and_eval" / "results.json").read_text())
    assert results == train(path, mode="eval") and list(results) == ["step 23"]


def test_old_checkpoints_go(tmp_path: Path) -> None:
    train(write(tmp_path, runconfig={"keep_checkpoint_max": 2}))
    assert [path.name for path in checkpoints_of(tmp_path / "out")] == ["checkpoint_20", "checkpoint_23"]
    assert not list((tmp_path / "out").glob(".*"))


def test_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path)
    train(path)
    once = train(path, mode="eval")
    again = train(path, "--checkpoint_path", str(tmp_path / "out" / "checkpoint_23"), mode="eval")
    assert once == again
    figures = once["step 23"]
    assert figures["eval/loss"] > 0 and 0.5 < figures["eval/accuracy"] <= 1
    every = train(path, "--eval_steps", "1", mode="eval_all")
    assert list(every) == ["step 8", "step 12", "step 16", "step 20", "step 23"]
    assert json.loads((tmp_path / "out" / "eval" / "results.json").read_text()) == once


def test_evaluating_in_between_changes_nothing(tmp_path: Path) -> None:
    train(write(tmp_path / "plain"))
    train(write(tmp_path / "both", runconfig={"eval_frequency": 3}), mode="train_and_eval")
    results = json.loads((tmp_path / "both" / "out" / "train_and_eval" / "results.json").read_text())
    assert list(results) == [f"step {step}" for step in (*range(3, 23, 3), 23)]
    assert losses(tmp_path / "plain") == losses(tmp_path / "both")


def test_pretrained_weights_begin_at_step_0(tmp_path: Path) -> None:
    train(write(tmp_path / "first"))
    weights = str(tmp_path / "first" / "out" / "checkpoint_23")
    train(write(tmp_path / "second"), "--checkpoint_path", weights, "--is_pretrained_checkpoint", "--max_steps", "2")
    rows = losses(tmp_path / "second").splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2"]
    last = load_file(tmp_path / "first" / "out" / "checkpoint_23" / WEIGHTS)
    first = load_file(tmp_path / "second" / "out" / "checkpoint_2" / WEIGHTS)
    assert all(np.abs(first[name] - last[name]).max() < 0.05 for name in last)


def test_params_are_written_complete(tmp_path: Path) -> None:
    train(write(tmp_path), "--max_steps", "1", "-o", str(tmp_path / "elsewhere"))
    written = yaml.safe_load((tmp_path / "elsewhere" / "train" / "params_train.yaml").read_text())
    assert written["runconfig"] | {"seed": 1, "mode": "train", "max_steps": 1} == written["runconfig"]
    assert written["model"] == {"size": 8}
    train(tmp_path / "elsewhere" / "train" / "params_train.yaml", mode="eval")  # what was written is a params file


def test_set_defaults_and_small_exponents(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("0.01", "1e-3"))
    params = get_params(path, "train", lambda params: params["model"].setdefault("depth", 3) and None)
    assert (params["model"]["depth"], params["optimizer"]["learning_rate"]) == (3, 1e-3)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"siez": 3}}, "Unknown key model.siez. Nearest: size"),
        ({"train_input": {"batchsize": 3}}, "Unknown key train_input.batchsize. Nearest: batch_size"),
        ({"runconfig": {"max_step": 3}}, "Unknown key runconfig.max_step. Nearest: max_steps"),
        ({"runconfig": {"max_steps": "many"}}, "runconfig.max_steps must be an integer of at least 0"),
        ({"optimizer": {"momentun": 0.9}}, "Unknown key optimizer.momentun for AdamW"),
        ({"optimizer": {"optimizer_type": "AdamX"}}, "Invalid optimizer_type AdamX"),
        ({"optimizer": {"learning_rate": {"scheduler": "Linaer"}}}, "Invalid scheduler Linaer"),
        ({"optimzer": {}}, "unknown section optimzer. Nearest: optimizer"),
        ({"train_input": {"rows": 0}}, "The data loader|num_samples"),
    ],
)
def test_wrong_params(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises((SystemExit, ValueError), match=message):
        train(write(tmp_path, **sections))


def test_a_key_that_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("size: 8", "siez: 8").replace("batch_siez", "batch_size"))
    with pytest.raises(SystemExit, match="The params file has no model.size. Nearest: siez"):
        train(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mode", "eval"), "has no checkpoint to evaluate"),
        (("--mode", "train", "--checkpoint_path", "nowhere"), "There is no checkpoint at nowhere"),
        (("--mode", "train", "--compile_only"), "has no checkpoint to compile"),
        (("--mode", "train", "--logging", "loud"), "Invalid --?logging loud, options"),
        (("--mode", "train", "--max_steps", "-3"), "--max_steps must be an integer of at least 0"),
        (("--mode", "eval", "--eval_steps", "0"), "--eval_steps must be an integer of at least 1"),
        (("--mode", "train", "-o", "/dev/null/x"), "Cannot write to /dev/null/x/train: .*--model_dir"),
        (("IPU", "--mode", "train"), "Training and evaluation run on CPU or GPU"),
    ],
)
def test_the_command_line_refuses(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run(Model, train_data, eval_data, arguments=[*flags, "-p", str(write(tmp_path))])


def test_validate_only_and_compile_only_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(write(tmp_path), "--validate_only", "--compile_only")
    assert "not allowed with" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    train(path, "--max_steps", "4")
    weights = tmp_path / "out" / "checkpoint_4" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(SystemExit, match=r"model.safetensors cannot be read"):
        train(path)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a PyTorchBaseModel"):
        train(write(tmp_path), model=lambda params: torch.nn.Linear(1, 1))


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    class Explodes(Model):
        def __call__(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().__call__(data) * float("inf")

    with pytest.raises(SystemExit, match="The loss of step 1 is inf"):
        train(write(tmp_path), model=Explodes)


# ---- the graph --------------------------------------------------------------------------------------------------


def test_validate_only_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"model": {"size": 4096}, "runconfig": {"precision": "fp16", "graph_sizes": {"batch": 8}}}
    found = train(write(tmp_path, **sizes), "--validate_only")
    assert found.parameters == 4096 * 5 + 4096 * 2 + 2
    assert found.weight_bytes == 4096 * 6 * 2 + (4096 + 2) * 4
    assert found.activation_bytes == 2 * 8 * 4096 * 4  # of the product, and of the sum with the bias
    assert "activations: at most 0.25 MiB at a time (batch 8)" in capsys.readouterr().out
    assert not checkpoints_of(tmp_path / "out")


def test_compile_only_saves_what_was_trained(tmp_path: Path) -> None:
    import onnxruntime as ort

    path = write(tmp_path)
    train(path)
    folder = train(path, "--compile_only", "-c", str(tmp_path / "compiled"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == "Model" and manifest["source"].endswith("checkpoint_23")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    weights = load_file(tmp_path / "out" / "checkpoint_23" / WEIGHTS)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = (x @ weights["0.weight"].T + weights["0.bias"]) @ weights["2.weight"].T + weights["2.bias"]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)


class Encoder(PyTorchBaseModel):
    """An encoder of two layers, for everything that a graph without running is asked for."""

    def __init__(self, params: dict[str, Any]) -> None:
        layer = nn.TransformerEncoderLayer(64, 4, 96)
        super().__init__(params, nn.TransformerEncoder(layer, 2))
        self.size = params["model"].get("size")

    def build_graph(self, graph: Graph) -> dict[str, ir.Value]:
        x = graph.input("x", ir.DataType.FLOAT, ["rows", "tokens", 64])
        layer = functools.partial(layers.TransformerEncoderLayer, d_model=64, nhead=4, dim_feedforward=96)
        return {"y": layers.TransformerEncoder(None, None, layer, 2)(graph, x)}


def train_encoder(tmp_path: Path, *flags: str, target: str = "CPU", **runconfig: Any) -> Any:
    path = write(tmp_path, runconfig={"graph_sizes": {"rows": 4, "tokens": 16}, **runconfig})
    return run(Encoder, train_data, eval_data, arguments=[target, "-m", "train", "-p", str(path), *flags])


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [
        ({"num_replicas": 2}, "2 ranks (2 x 1 stages)"),
        ({"layer_per_ipu": [1, 1]}, "2 ranks (1 x 2 stages)"),
        ({"num_replicas": 4, "layer_per_ipu": [1, 1], "precision": "int4"}, "8 ranks (4 x 2 stages)"),
    ],
)
def test_validate_only_of_replicas_and_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: dict[str, Any], ranks: str
) -> None:
    found = train_encoder(tmp_path, "--validate_only", target="IPU", **plan)
    matrices = 4 * 64 * 64 + 2 * 64 * 96
    assert found.parameters == 2 * (matrices // plan.get("num_replicas", 1) + 4 * 64)
    out = capsys.readouterr().out
    assert f"MiB on {ranks}; " in out
    stages = len(plan.get("layer_per_ipu", [2]))
    assert f"Emulated on c600: {stages} stage" in out and "B (" in out and "One call: " in out
    assert (
        yaml.safe_load((tmp_path / "out" / "train" / "params_train.yaml").read_text())["runconfig"]["device"] == "c600"
    )


def test_what_an_emulated_device_refuses(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="layer_per_ipu sums to 3, model has 2 layers; try \\[1,1\\]"):
        train_encoder(tmp_path, "--validate_only", layer_per_ipu=[1, 2])
    with pytest.raises(SystemExit, match="num_replicas=3 does not divide 4 heads; valid: 1, 2, 4"):
        train_encoder(tmp_path, "--validate_only", num_replicas=3)
    with pytest.raises(SystemExit, match="fp8 needs C600"):
        train_encoder(tmp_path, "--validate_only", device="gc2", precision="fp8")
    with pytest.raises(SystemExit, match="Invalid device c7, options"):
        train_encoder(tmp_path, "--validate_only", device="c7")
    with pytest.raises(SystemExit, match="does not fit on gc2: stage 0 needs"):
        train_encoder(tmp_path, "--validate_only", device="gc2", graph_sizes={"rows": 4096, "tokens": 512})
    with pytest.raises(SystemExit, match="The graph has no blocks that an IPU could hold"):
        train(write(tmp_path, runconfig={"device": "c600"}), "--validate_only")


def test_compile_only_of_replicas_and_stages(tmp_path: Path) -> None:
    """What is saved is opened and gives what one replica gives."""
    torch.manual_seed(0)
    save_checkpoint = tmp_path / "weights"
    save_checkpoint.mkdir()
    model = Encoder({"model": {}})
    save_file(
        {name: tensor.contiguous() for name, tensor in model.model.state_dict().items()}, save_checkpoint / WEIGHTS
    )
    flags = ("--compile_only", "--checkpoint_path", str(save_checkpoint), "-c")
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 64), np.float32)}
    results = []
    for name, plan in {"one": {}, "many": {"num_replicas": 2, "layer_per_ipu": [1, 1]}}.items():
        folder = train_encoder(tmp_path, *flags, str(tmp_path / name), threads=1, **plan)
        results.append(Program.load(folder, threads=1).run(x)["y"])
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["num_replicas"] == plan.get("num_replicas", 1) and manifest["layer_per_ipu"] == plan.get(
            "layer_per_ipu", []
        )
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    folder = train_encoder(tmp_path, *flags, str(tmp_path / "ipu"), target="IPU", precision="fp8")
    stored = {weight["stored"] for weight in json.loads((folder / "manifest.json").read_text())["weights"]}
    assert stored == {"e4m3fnuz channel"}  # the IPU's own 8-bit floats
    with torch.no_grad():
        np.testing.assert_allclose(results[0], model.model.eval()(torch.from_numpy(x["x"])), atol=1e-5)


def test_a_model_without_a_graph_says_so(tmp_path: Path) -> None:
    class NoGraph(Model):
        build_graph = PyTorchBaseModel.build_graph

    with pytest.raises(SystemExit, match="NoGraph has no graph: define build_graph"):
        train(write(tmp_path), "--validate_only", model=NoGraph)
