# SPDX-License-Identifier: Apache-2.0
"""The Linformer example: text, TFRecord files, batches, training, and the trained model as a graph."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from poptransformer.attention_rules import LINFORMER_STYLES
from poptransformer.data.create_tfrecords_mlm_only import create, parse
from poptransformer.data.examples import decode_example, encode_example, encode_sequence_example
from poptransformer.data.tfrecords import RecordWriter, read_records
from poptransformer.errors import ConfigError
from poptransformer.nn import as_state_dict
from poptransformer.program import Program

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "linformer"
CONFIGS = sorted(EXAMPLE.glob("configs/params_linformer_*.yaml"))
TINY = EXAMPLE / "configs" / "params_tiny.yaml"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The example's modules, whose names others have too."""
    names = ("utils", "graph", "data", "model", "inference", "make_text")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(EXAMPLE))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(EXAMPLE))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def run(*arguments: str, code: int = 0, folder: Path = EXAMPLE) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# ---- rows of one letter as text, which a tiny model learns in seconds ---------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TFRecord files `static` and `dynamic` of rows of 4 to 24 equal letters, and the vocabulary."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    rows = [" ".join(letter * length) for letter in VOCABULARY[5:] for length in (4, 9, 14, 24)]
    (folder / "text.txt").write_text("\n\n".join(rows) + "\n")
    (folder / "metadata.txt").write_text(f"{folder / 'text.txt'}\n")
    for name, flags in (("static", ["--dupe_factor", "2"]), ("dynamic", ["--disable_masking"])):
        files = ["--metadata_files", str(folder / "metadata.txt"), "--vocab_file", str(folder / "vocab.txt")]
        cut = ["--multiple_docs_in_single_file", "--single_sentence_per_line", "--overlap_size", "0"]
        sizes = ["--max_seq_length", "32", "--max_predictions_per_seq", "5", "--short_seq_prob", "0"]
        target = ["--output_dir", str(folder / name), "--num_output_files", "2", "--num_workers", "1"]
        create(parse([*files, *cut, *sizes, *target, *flags]))
    return folder


def params_of(data: Path, kind: str = "dynamic", **changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tiny params, smaller, on the alphabet; `None` takes a key out."""
    params = yaml.safe_load(TINY.read_text())
    processor = "BertMlmOnlyTfRecords" + {"dynamic": "Dynamic", "static": "Static"}[kind] + "MaskProcessor"
    files = {"data_dir": str(data / kind), "vocab_file": str(data / "vocab.txt"), "data_processor": processor}
    sizes: dict[str, Any] = {
        "max_sequence_length": 32,
        "max_predictions_per_seq": 5,
        "batch_size": 16,
        "buckets": [8, 16],
    }
    sizes["masked_lm_prob"] = 0.15
    updates: dict[str, Mapping[str, Any]] = {
        "train_input": {**files, **sizes},
        "eval_input": {"data_dir": str(data / kind)},
        "model": {"hidden_size": 32, "filter_size": 64, "max_position_embeddings": 32, "projected_dims": 16}
        | {"initializer": "xavier_uniform"},
    }
    for section in (updates, changes):
        for name, values in section.items():
            params[name].update(values)
    return {name: {k: v for k, v in section.items() if v is not None} for name, section in params.items()}


@pytest.fixture
def loader(example: SimpleNamespace, data: Path) -> Any:
    def make(kind: str = "dynamic", **changes: Mapping[str, Any]) -> Any:
        params = params_of(data, kind, **changes)
        example.utils.set_defaults(params)
        return example.data.get_train_dataloader(params)

    return make


def rows_of(batch: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The rows of a batch with their masked pieces put back, and without padding."""
    rows = []
    for index, ids in enumerate(batch["input_ids"]):
        kept = batch["masked_lm_weights"][index] > 0
        row = ids.clone()
        row[batch["masked_lm_positions"][index][kept]] = batch["masked_lm_ids"][index][kept]
        rows.append(row[batch["input_mask"][index] == 1].tolist())
    return rows


# ---- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "times"), [("dynamic", 1), ("static", 2)])
@pytest.mark.parametrize("buckets", [None, [8, 16]])
def test_an_epoch_has_every_row(loader: Any, data: Path, kind: str, times: int, buckets: list[int] | None) -> None:
    found = [row for batch in loader(kind, train_input={"buckets": buckets}) for row in rows_of(batch)]
    lines = [line.split() for line in (data / "text.txt").read_text().splitlines() if line]
    expected = [[2, *(VOCABULARY.index(letter) for letter in line), 3] for line in lines]
    assert sorted(found) == sorted(expected * times)


def test_a_bucket_holds_rows_of_similar_length(loader: Any) -> None:
    batches = list(loader(train_input={"buckets": [8, 16]}))
    for lengths in (batch["input_mask"].sum(1) for batch in batches):
        assert len({int(sum(length > bound for bound in (8, 16))) for length in lengths}) == 1
    fill = sum(int(b["input_mask"].sum()) for b in batches) / sum(b["input_mask"].numel() for b in batches)
    mixed = list(loader(train_input={"buckets": None}))
    fill_mixed = sum(int(b["input_mask"].sum()) for b in mixed) / sum(b["input_mask"].numel() for b in mixed)
    assert fill > 0.85 > 0.7 > fill_mixed


def test_masks_are_drawn_anew_and_by_torchs_generator_alone(loader: Any) -> None:
    def epoch(batches: Any) -> list[list[Any]]:
        return [batch["input_ids"].tolist() for batch in batches]

    batches = loader()
    torch.manual_seed(3)
    first, second = epoch(batches), epoch(batches)
    torch.manual_seed(3)
    assert first != second
    assert epoch(loader()) == first


def test_static_masks_are_those_of_the_file(loader: Any, data: Path) -> None:
    stored = [decode_example(r) for path in sorted((data / "static").glob("*.tfrecords")) for r in read_records(path)]
    batches = list(loader("static", train_input={"shuffle": False, "buckets": None, "scale_mlm_weights": False}))
    ids = [row[mask == 1].tolist() for b in batches for row, mask in zip(b["input_ids"], b["input_mask"], strict=True)]
    assert ids == [record["input_ids"][: sum(record["input_mask"])] for record in stored]
    weights = torch.cat([batch["masked_lm_weights"].flatten() for batch in batches])
    assert int(weights.sum()) == sum(sum(record["masked_lm_weights"]) for record in stored)


def test_scaled_weights_add_up_to_the_rows(loader: Any) -> None:
    for batch in loader(train_input={"scale_mlm_weights": True}):
        assert float(batch["masked_lm_weights"].sum()) == pytest.approx(len(batch["input_ids"]), rel=1e-5)


def test_pads_of_vsl(loader: Any) -> None:
    """By default the vocabulary's size + 1, 2 and -1; without VSL the vocabulary's own padding."""
    changes = {"use_vsl": True, "use_segment_embedding": True}
    for batch in loader(model=changes):
        padding = batch["input_mask"] == 0
        assert torch.equal(batch["input_ids"] == len(VOCABULARY) + 1, padding)
        assert torch.equal(batch["segment_ids"] == 2, padding)
        free = batch["masked_lm_weights"] == 0
        assert torch.equal(batch["masked_lm_positions"] == -1, free) and torch.equal(batch["masked_lm_ids"] == -1, free)
    plain = next(iter(loader(model={**changes, "use_vsl": False}, train_input={"buckets": None})))
    assert set(plain["input_ids"][plain["input_mask"] == 0].tolist()) == {0}


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train_input", {"input_pad_id": 7}, r"input_pad_id must be 0 or no id of the vocabulary \(31 or more, -2 or"),
        ("train_input", {"input_pad_id": -1}, "input_pad_id must be 0 or no id"),
        ("train_input", {"segment_pad_id": 1}, "segment_pad_id must be below -1 or above 1, found 1"),
        ("train_input", {"mlm_pad_id": 0}, "mlm_pad_id must be -1, found 0"),
        ("train_input", {"input_pad_id": "x"}, "input_pad_id must be an integer, found 'x'"),
        ("model", {"use_vsl": False, "input_pad_id": 90}, "input_pad_id tells padding apart for model.use_vsl"),
        ("model", {"input_pad_id": 90}, "model.input_pad_id is 90, but train_input.input_pad_id 32"),
        ("model", {"attention_style": "linformer"}, "Invalid attention_style linformer, options: .*shared-heads"),
        ("model", {"projected_dim": 8}, "Unknown key model.projected_dim. Nearest: projected_dims"),
        ("model", {"projected_dims": None}, "model.projected_dims must be an integer of at least 1, found null"),
        ("model", {"vocab_size": 30}, "train_input has a vocabulary of 31, the model one of 30"),
        ("model", {"disable_nsp": False}, "model.disable_nsp must be true"),
        ("train_input", {"bucket": [8]}, "Unknown key train_input.bucket. Nearest: buckets"),
        ("train_input", {"buckets": [8, 4]}, "train_input.buckets must be a list of rising lengths"),
        ("train_input", {"max_sequence_length": 64}, "max_sequence_length is 64, but model.max_position_embeddings 32"),
        ("train_input", {"vocab_file": None}, "Set train_input.vocab_file or train_input.vocab_size"),
        ("train_input", {"vocab_file": None, "vocab_size": 31}, "vocab_file is missing: BertMlmOnlyTfRecordsDynamic"),
        ("eval_input", {"input_pad_id": 40}, "Unknown key eval_input.input_pad_id"),
        ("eval_input", {"data_processor": "Bert"}, "Invalid data_processor Bert, options"),
    ],
)
def test_wrong_params(example: SimpleNamespace, data: Path, section: str, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        example.utils.set_defaults(params_of(data, **{section: changes}))


def test_eval_input_takes_what_it_leaves_out_from_train_input(example: SimpleNamespace, data: Path) -> None:
    params = params_of(data)
    example.utils.set_defaults(params)
    given, taken = params["train_input"], params["eval_input"]
    assert taken["shuffle"] is False and taken["vocab_file"] == given["vocab_file"] and taken["batch_size"] == 16


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("dynamic", encode_example({"input_ids": [1]}), "has no `tokens`. Write the files with --disable_masking"),
        ("static", encode_sequence_example({"tokens": [[b"a"]]}), "has no `input_ids`. Write .* without --disable"),
        ("dynamic", encode_sequence_example({"tokens": [[b"a"], [b"zz"]]}), "has no piece 'zz'. Use the vocabulary"),
        ("dynamic", encode_sequence_example({"tokens": [[1], [2]]}), "holds other values than BertMlmOnly"),
        ("dynamic", encode_sequence_example({"tokens": [[b"a"]] * 33}), "has 33 pieces; expected 1 to .* 32"),
        ("dynamic", b"\xff\xff", "The record is no SequenceExample"),
    ],
)
def test_wrong_records(loader: Any, tmp_path: Path, kind: str, record: bytes, message: str) -> None:
    with RecordWriter(tmp_path / "x.tfrecords") as writer:
        writer.write(record)
    with pytest.raises(ConfigError, match=rf"x\.tfrecords: .*{message}"):
        list(loader(kind, train_input={"data_dir": str(tmp_path)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [2, 31, 3, 0]}, "input_ids go from 2 to 31, but vocab_size is 31"),
        ({"masked_lm_ids": [-4]}, "masked_lm_ids go from -4 to -4"),
        ({"masked_lm_positions": [3]}, r"a record of 3 pieces has masks at \[3\]"),
        ({"input_mask": [1, 0, 1, 0]}, "input_mask must be ones, then zeros"),
        ({"input_mask": [1, 1, 1]}, "input_ids and input_mask differ in length"),
        ({"input_mask": [0, 0, 0, 0]}, "has 0 pieces"),
        ({"masked_lm_weights": [1.0, 1.0]}, "masked_lm_positions and .* differ in length"),
    ],
)
def test_wrong_static_records(loader: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    record = {"input_ids": [2, 5, 3, 0], "input_mask": [1, 1, 1, 0]}
    record |= {"masked_lm_positions": [1], "masked_lm_ids": [6], "masked_lm_weights": [1.0]}
    with RecordWriter(tmp_path / "x.tfrecords") as writer:
        writer.write(encode_example({**record, **changes}))
    with pytest.raises(ConfigError, match=message):
        list(loader("static", train_input={"data_dir": str(tmp_path)}))


def test_files_that_are_missing_or_damaged(loader: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \*.tfrecords. Write some with scripts/create_tfrecords_mlm_only"):
        loader(train_input={"data_dir": str(tmp_path)})
    with pytest.raises(ConfigError, match="has 31 word pieces, but vocab_size is 40"):
        loader(train_input={"vocab_size": 40}, eval_input={"vocab_size": 40})
    content = bytearray((data / "dynamic" / "examples-1.tfrecords").read_bytes())
    content[30] ^= 1
    (tmp_path / "x.tfrecords").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tfrecords: the record at offset 0 is damaged"):
        list(loader(train_input={"data_dir": str(tmp_path)}))


# ---- the model ----------------------------------------------------------------------------------------------------


def model_of(example: SimpleNamespace, params: dict[str, Any]) -> Any:
    """The model with every parameter drawn at random, biases and norms too."""
    example.utils.set_defaults(params)
    torch.manual_seed(0)
    model = example.model.LinformerForMaskedLM(params)
    for weight in model.model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3)
    model.model.eval()
    return model


VARIANTS = [
    *({"attention_style": style} for style in LINFORMER_STYLES),
    {"share_embedding_weights": False, "use_pre_normalization": False},
    {"use_segment_embedding": False, "use_output_bias_in_mlm": False, "use_ffn_bias_in_mlm": False},
    {"position_embedding_type": "fixed", "mlm_nonlinearity": "relu", "encoder_nonlinearity": "swish"},
    {"use_position_embedding": False, "use_ffn_bias": False, "attention_type": "dot_product"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=[", ".join(map(str, v.values())) for v in VARIANTS])
@pytest.mark.parametrize("use_vsl", [False, True], ids=["padded", "packed"])
def test_the_graph_equals_torch(example: SimpleNamespace, data: Path, variant: dict[str, Any], use_vsl: bool) -> None:
    params = params_of(data, model={**variant, "use_vsl": use_vsl}, train_input={"buckets": None})
    model = model_of(example, params)
    batch = next(iter(example.data.get_train_dataloader(params)))
    arguments = model._packed(batch) if use_vsl else model._padded(batch)
    with torch.no_grad():
        expected = model.model(**arguments).numpy()
    program = Program.compile(model.build_graph, as_state_dict(model.model))
    inputs = {name: np.asarray(arguments[name], np.int64) for name in program.inputs}
    found = program.run(inputs)["logits"]
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("scaling", ["precomputed_num_masked", "num_masked", "batch_size"])
def test_vsl_is_lossless(example: SimpleNamespace, data: Path, scaling: str) -> None:
    """The loss, the figures and every gradient are those of padded rows."""
    found = {}
    for use_vsl in (False, True):
        changes = {"use_vsl": use_vsl, "mlm_loss_scaling": scaling, "mlm_loss_weight": 0.5}
        params = params_of(data, "static", model=changes, train_input={"buckets": None, "shuffle": False})
        model = model_of(example, params)
        batch = next(iter(example.data.get_train_dataloader(params)))
        loss = model(batch)
        loss.backward()
        gradients = {name: weight.grad for name, weight in model.model.named_parameters()}
        found[use_vsl] = (loss.detach(), model.perplexity.compute(), model.accuracy.compute(), gradients)
    (loss, perplexity, accuracy, gradients), packed = found[False], found[True]
    torch.testing.assert_close(packed[0], loss, rtol=1e-5, atol=1e-6)
    assert packed[1] == pytest.approx(perplexity, rel=1e-4) and packed[2] == accuracy
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[3][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_the_loss_is_the_mean_of_the_masked_pieces(example: SimpleNamespace, data: Path) -> None:
    """Scaled weights and `precomputed_num_masked`, or `num_masked` without them; perplexity is its exponential."""
    for changes, scaled in (({"mlm_loss_scaling": "num_masked"}, False), ({}, True)):
        inputs = {"buckets": None, "shuffle": False, "scale_mlm_weights": scaled}
        params = params_of(data, "static", model=changes, train_input=inputs)
        model = model_of(example, params)
        batch = next(iter(example.data.get_train_dataloader(params)))
        with torch.no_grad():
            loss, logits = model(batch), model.model(**model._packed(batch))
        labels = batch["masked_lm_ids"][batch["masked_lm_weights"] > 0]
        mean = torch.nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(loss, mean, rtol=1e-5, atol=0)
        assert model.perplexity.compute() == pytest.approx(math.exp(mean), rel=1e-4)
        assert model.accuracy.compute() == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))


# ---- configurations -----------------------------------------------------------------------------------------------


def test_the_shipped_configurations() -> None:
    sizes = {"base": (768, 12, 12, 3072, 256), "large": (1024, 24, 16, 4096, 128)}
    names = ["_".join((path.stem.split("_")[3], path.stem.split("_")[-1])) for path in CONFIGS]
    assert names == ["base_heads", "base_kv", "base_layers", "large_heads", "large_kv"]
    for name, path in zip(names, CONFIGS, strict=True):
        params, (size, style) = yaml.safe_load(path.read_text()), name.split("_")
        model, optimizer = params["model"], params["optimizer"]
        keys = ("hidden_size", "num_hidden_layers", "num_heads", "filter_size", "projected_dims")
        assert tuple(model[key] for key in keys) == sizes[size]
        assert model["attention_style"] == f"linformer-shared-{style}" and model["dropout_rate"] == 0.1
        assert params["train_input"]["max_sequence_length"] == model["max_position_embeddings"] == 512
        assert params["train_input"]["max_predictions_per_seq"] == 80
        assert (optimizer["weight_decay_rate"], optimizer["epsilon"], optimizer["max_gradient_norm"]) == (0.01, 1e-6, 1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem[len("params_linformer_roberta_") :])
def test_their_graphs_are_valid(example: SimpleNamespace, tmp_path: Path, path: Path, capsys: Any) -> None:
    from poptransformer import training

    training.run(
        example.model.LinformerForMaskedLM,
        default_params_fn=example.utils.set_defaults,
        arguments=["CPU", "-m", "train", "-p", str(path), "-o", str(tmp_path), "--validate_only", "--logging", "error"],
    )
    out = capsys.readouterr().out
    assert "graph: valid" in out and "(batch 8, tokens 512, places 640)" in out


def test_the_schedule_warms_up_and_ends() -> None:
    from poptransformer.training import create_schedule

    rate = create_schedule(yaml.safe_load(CONFIGS[0].read_text())["optimizer"]["learning_rate"])
    assert [rate(step) for step in (0, 12500, 25000, 250000)] == pytest.approx([0.0, 5e-5, 1e-4, 0.0], abs=1e-12)


# ---- from end to end ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml and a model that was trained by it."""
    folder = tmp_path_factory.mktemp("trained")
    schedule = {"scheduler": "Linear", "initial_learning_rate": 5e-3, "end_learning_rate": 0.0, "total_iters": 120}
    runconfig = {"max_steps": 120, "checkpoint_steps": 60, "model_dir": str(folder / "model_dir")}
    params = params_of(data, optimizer={"learning_rate": [schedule]}, runconfig=runconfig)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    run("run.py", "CPU", "--mode", "train_and_eval", "--params", str(folder / "params.yaml"))
    return folder


def test_it_learns(trained: Path) -> None:
    figures = json.loads((trained / "model_dir" / "train_and_eval" / "results.json").read_text())["step 120"]
    assert figures["eval/accuracy_masked_lm"] > 0.8  # a letter is 1 of 26
    assert figures["eval/mlm_perplexity"] < 3
    out = run("run.py", "CPU", "--mode", "eval", "--params", str(trained / "params.yaml"))
    for name, value in figures.items():
        assert f"{name} {value:.5f}" in out


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_graph_fills_in_letters(trained: Path, precision: str) -> None:
    texts = ["d d d d [MASK] d d d", "x [MASK] x x x x x x [MASK] x x"]
    out = run("inference.py", *texts, "--model_dir", str(trained / "model_dir"), "--precision", precision)
    assert out.splitlines() == ["d d d d d d d d", "x x x x x x x x x x x"]


def test_inference_needs_no_torch(trained: Path) -> None:
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.path.insert(0, '.'); "
        f"sys.argv = ['inference.py', 'a a a a [MASK] a a a', '--model_dir', {str(trained / 'model_dir')!r}]; "
        "runpy.run_path('inference.py', run_name='__main__')"
    )
    assert run("-c", code) == "a a a a a a a a\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a b c"], "'a b c' has no [MASK]"),
        (["[MASK] " * 31], "33 word pieces with [CLS] and [SEP], but the model takes 32"),
        (["[MASK]", "--vocab_file", "none.txt"], "Cannot read the vocabulary none.txt"),
        (["[MASK]", "--precision", "int9"], "int9"),
    ],
)
def test_wrong_sentences(trained: Path, arguments: list[str], message: str) -> None:
    assert message in run("inference.py", *arguments, "--model_dir", str(trained / "model_dir"), code=1)


def test_without_weights_it_says_what_to_do(tmp_path: Path) -> None:
    out = run("inference.py", "[MASK]", "--model_dir", str(tmp_path), code=1)
    assert "holds no trained model. Train one first" in out


def test_validate_and_compile(trained: Path, tmp_path: Path) -> None:
    flags = ("--mode", "train", "--params", str(trained / "params.yaml"))
    assert "graph: valid" in run("run.py", "CPU", *flags, "-o", str(tmp_path), "--validate_only")
    run("run.py", "CPU", *flags, "-c", str(tmp_path / "compiled"), "--compile_only")
    program = Program.load(tmp_path / "compiled")
    assert set(program.inputs) == {"input_ids", "places", "position_ids", "lengths", "segment_ids"}


def test_a_killed_run_ends_with_the_same_losses(trained: Path, tmp_path: Path) -> None:
    flags = ["run.py", "CPU", "--mode", "train", "--params", str(trained / "params.yaml"), "-o", str(tmp_path)]
    running = subprocess.Popen([sys.executable, *flags], cwd=EXAMPLE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while not (tmp_path / "checkpoint_60").is_dir() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    shutil.rmtree(tmp_path / "checkpoint_120", ignore_errors=True)  # in case it was faster than the signal
    assert "continues from" in run(*flags)
    assert (tmp_path / "train" / "loss.csv").read_text() == (trained / "model_dir" / "train" / "loss.csv").read_text()


def test_text_of_a_fresh_machine(example: SimpleNamespace, tmp_path: Path) -> None:
    count = example.make_text.write(tmp_path, 600)
    pieces = (tmp_path / "vocab.txt").read_text().splitlines()
    assert len(pieces) == count <= 600 and set(pieces) > {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    train, held_out = ((tmp_path / f"{name}.txt").read_text() for name in ("train", "eval"))
    assert len(train) > 200_000 and len(held_out) > 20_000 and held_out.splitlines()[0] not in train.splitlines()
    words = example.inference.WordPieces(tmp_path / "vocab.txt", True).split(train[:5000])
    assert "[UNK]" not in words
