# SPDX-License-Identifier: Apache-2.0
"""docs/adding_a_model.md, followed to the letter: its files in a copy of the tree, its commands, PyTorch's logits."""

from __future__ import annotations

import collections
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import poptransformer
from tests.parity import stored_caches
from tests.parity.dequantized import bodies, dequantized

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text(encoding="utf-8")
EXAMPLE, MODEL = Path("examples/your_model"), Path("poptransformer/models/your_model")

FENCE = r"\n\n```\w+\n(.*?)^```$"
FILE = re.compile(r"^file: `(.+?)`" + FENCE, re.DOTALL | re.MULTILINE)
REPLACEMENT = re.compile(r"^in place of `(.+?)` in `(.+?)`" + FENCE, re.DOTALL | re.MULTILINE)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)

FORMS = ["short", "by hand"]
MODES = ["shard", "tp"]
REPLICAS = {"shard": [1], "tp": [1, 2, 4]}
WORDS = 67
ATTENTION, MLP = ("query_key_value", "dense"), ("dense_h_to_4h", "dense_4h_to_h")
ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8]]
# The tokenizer's words are the ids as numerals, so `python inference.py` prints ids.
PROMPT, TEMPLATE, IN_TEMPLATE, ANSWER_TOKENS = "3 1 4", "7 {} 7", [7, 3, 1, 4, 7], 9

COMPARE = """
import sys
import numpy as np
import poptransformer

folder, target, rows = sys.argv[1], sys.argv[2], eval(sys.argv[3])
ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
for target_row, row in zip(ids, rows):
    target_row[:len(row)] = row
found = {}
for mode, counts in eval(sys.argv[4]).items():
    for replicas in counts:
        engine = poptransformer.load(folder, model_type=mode, num_replicas=replicas)
        found[f"logits {mode} {replicas}"] = engine.logits(ids, [len(row) for row in rows])
        for number, answer in enumerate(engine.generate(rows, max_new_tokens=12)):
            found[f"ids {mode} {replicas} {number}"] = np.array(answer)
np.savez(target, **found)
"""

SAVE = """
import json, sys
import poptransformer

folder, target, mode, cases = *sys.argv[1:4], json.loads(sys.argv[4])
for name, (precision, details) in cases.items():
    for fuse in (False, True):
        engine = poptransformer.load(folder, precision, mode, quantization=details, fuse=fuse)
        engine.save(f"{target}/{name}-{'fused' if fuse else 'plain'}")
"""

# Precision, details, and how the report says that matrices of the attention, of the MLP and the head are stored.
PRECISIONS = {
    "fp16": ("fp16", {}, ["fp16"] * 3),
    "bf16": ("bf16", {}, ["bf16"] * 3),
    "int8": ("int8", {}, ["int8 block 32"] * 3),
    "int4": ("int4", {}, ["int4 block 32 offsets"] * 2 + ["int8 block 32"]),
    "int4-symmetric": ({"*": "int4"}, {"int4_symmetric": True}, ["int4 block 32"] * 3),
    "fp8": ("fp8", {}, ["e4m3fn channel"] * 2 + ["int8 block 32"]),
    "fp8_weight": ("fp8_weight", {"fp8_format": "e5m2"}, ["e5m2 channel"] * 2 + ["int8 block 32"]),
    "recipe": (
        {"*.mlp.*": "int4", "*attention*": "fp8_weight", "*": "int8"},
        {},
        ["e4m3fn channel", "int4 block 32 offsets", "int8 block 32"],
    ),
}


def page_files(form: str) -> dict[Path, str]:
    """The files of the page; `by hand` with the dispatching class written out."""
    files = {Path(name): text for name, text in FILE.findall(PAGE)}
    if form == "by hand":
        ((line, name, text),) = REPLACEMENT.findall(PAGE)
        whole = files[Path(name)]
        files[Path(name)] = whole[: whole.index(line)] + text
    return files


def copied_files() -> set[Path]:
    """What a model needs of the project: the package, the examples' code, and the kernels where they are built."""
    patterns = (
        "poptransformer/**/*.py",
        "examples/**/*.py",
        "examples/**/*.yaml",
        "examples/**/*.json",
        "pyproject.toml",
    )
    found = {path for pattern in (*patterns, "custom_ops/build/*.so") for path in ROOT.glob(pattern)}
    return {path.relative_to(ROOT) for path in found}


def run(tree: Path, *arguments: str, folder: Path = Path()) -> str:
    """Runs Python in a folder of the copied tree, and with no other copy of the package in reach."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HYDRA_FULL_ERROR")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree / folder,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=FORMS)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files added."""
    folder = tmp_path_factory.mktemp("tree")
    for path in copied_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    for path, text in page_files(request.param).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTNeoXForCausalLM, Path]:
    """A small random model as transformers writes it, with a tokenizer whose words are the ids."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = GPTNeoXConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        bos_token_id=0,
        eos_token_id=WORDS - 1,
    )
    model = GPTNeoXForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(WORDS)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(WORDS - 1)).save_pretrained(folder)
    return model, folder


def greedy(model: GPTNeoXForCausalLM, row: list[int], count: int, early_stop: bool = True) -> list[int]:
    """New ids of transformers' own `generate`."""
    settings = GenerationConfig(
        max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=WORDS - 1 if early_stop else None
    )
    if not early_stop:
        model = copy.deepcopy(model)
        model.generation_config.eos_token_id = None  # what the settings leave open would come from here
    ids = torch.tensor([row])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output[0, len(row) :].tolist()


def test_the_page_has_the_files_it_lists() -> None:
    assert set(page_files("short")) == {
        EXAMPLE / "inference.py",
        EXAMPLE / "conf" / "sharding.yaml",
        EXAMPLE / "test_your_model.py",
        MODEL / "__init__.py",
        MODEL / "layers.py",
        MODEL / "model.py",
    }


def test_only_its_own_directories_are_touched() -> None:
    for path in page_files("short"):
        assert path.is_relative_to(EXAMPLE) or path.is_relative_to(MODEL)
    assert not (ROOT / EXAMPLE).exists()
    assert not (ROOT / MODEL).exists()


def test_inference_py_is_the_examples_own() -> None:
    docstring = re.compile(r'^""".*?"""$', re.DOTALL | re.MULTILINE)
    ours = (ROOT / "examples" / "gpt2" / "inference.py").read_text(encoding="utf-8")
    assert docstring.sub("", page_files("short")[EXAMPLE / "inference.py"]) == docstring.sub("", ours)


def test_logits_and_ids_equal_pytorchs(tree: Path, checkpoint: tuple[GPTNeoXForCausalLM, Path], tmp_path: Path) -> None:
    model, folder = checkpoint
    target = tmp_path / "found.npz"
    run(tree, "-c", COMPARE, str(folder), str(target), repr(ROWS), repr(REPLICAS))
    found = np.load(target)
    for number, row in enumerate(ROWS):
        with torch.no_grad():
            expected = model(torch.tensor([row])).logits[0].numpy()
        assert expected.std() > 0.5
        for plan in (f"{mode} {replicas}" for mode, counts in REPLICAS.items() for replicas in counts):
            ours = found[f"logits {plan}"][number, : len(row)]
            np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0, err_msg=f"{plan} {row}")
            assert found[f"ids {plan} {number}"].tolist() == greedy(model, row, 12)


@pytest.fixture(scope="module", params=MODES)
def saved(
    request: pytest.FixtureRequest, tree: Path, checkpoint: tuple[GPTNeoXForCausalLM, Path], tmp_path_factory: Any
) -> Path:
    """The page's model in every precision, fused and as its layers wrote it."""
    target = tmp_path_factory.mktemp("saved")
    cases = {name: case[:2] for name, case in PRECISIONS.items()}
    run(tree, "-c", SAVE, str(checkpoint[1]), str(target), request.param, json.dumps(cases))
    return target


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_layers_are_quantized_like_ours(
    saved: Path, checkpoint: tuple[GPTNeoXForCausalLM, Path], precision: str
) -> None:
    """Saved models need no class of theirs: this process has never heard of the page's."""
    fused, plain = (poptransformer.load(saved / f"{precision}-{form}") for form in ("fused", "plain"))
    attention, mlp, head = PRECISIONS[precision][2]
    expected = {"lm_head.weight": head}
    for layer in range(3):
        expected |= {f"gpt_neox.layers.{layer}.attention.{name}.weight": attention for name in ATTENTION}
        expected |= {f"gpt_neox.layers.{layer}.mlp.{name}.weight": mlp for name in MLP}
    stored = {weight.name: weight.stored for weight in fused.quantization_report.weights}
    assert expected.items() <= stored.items()
    ids, model = np.array(ROWS[0]), checkpoint[0]
    found = stored_caches.run(bodies(fused), ids)
    logits = stored_caches.reference_logits(dequantized(model, plain), ids, found.caches)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4, rtol=0)
    with torch.no_grad():
        exact = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(logits - exact).max() > 5e-4  # it is another model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_layers_are_fused_like_ours(saved: Path, precision: str) -> None:
    fused, plain = (poptransformer.load(saved / f"{precision}-{form}") for form in ("fused", "plain"))
    for engines in ((fused, plain), (bodies(fused), bodies(plain))):
        found, expected = (engine.logits(ROWS[0]) for engine in engines)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    ops = collections.Counter(node.op_type for node in fused.runtime.compiled.model.graph)
    assert (ops["FusedLinear"], ops["RotaryCachedAttention"]) == (3 * 4 + 1, 3)
    # Activations are rounded once for all that reads them, so fp8's norms stand alone, but for the head's.
    assert ops["LayerNormalization"] == (6 if precision == "fp8" else 0)
    assert not ops.keys() & {"MatMul", "Linear", "QuantizedLinear", "Gelu", "RotaryEmbedding", "CachedAttention"}


@pytest.mark.parametrize("mode", MODES)
def test_inference_py(tree: Path, checkpoint: tuple[GPTNeoXForCausalLM, Path], mode: str) -> None:
    """The page's command, in its folder; the checkpoint and the length of the answer are the test's."""
    assert "cd examples/your_model\npython inference.py\n" in COMMANDS.findall(PAGE)
    model, folder = checkpoint
    overrides = {
        "model.hf_model_name": folder,
        "model.max_loop": ANSWER_TOKENS,
        "global_args.model_type": mode,
        "global_args.precision": "fp32",
        "inputs.input_string_list": f"['{PROMPT}']",
        "inputs.template": f"'{TEMPLATE}'",
    }
    out = run(tree, "inference.py", *(f"{key}={value}" for key, value in overrides.items()), folder=EXAMPLE)
    answer = greedy(model, IN_TEMPLATE, ANSWER_TOKENS, early_stop=False)
    assert out == PROMPT + " ".join(map(str, answer)) + "\n"


@pytest.mark.parametrize("tree", ["short"], indirect=True)
def test_the_pages_own_test(tree: Path) -> None:
    assert "python -m pytest examples/your_model\n" in COMMANDS.findall(PAGE)
    out = run(tree, "-m", "pytest", "examples/your_model", "-q", "-p", "no:cacheprovider")
    assert "4 passed" in out


def test_the_code_passes_lint(tree: Path) -> None:
    by_hand = "class CustomLayer(TPCustomLayer" in (tree / MODEL / "layers.py").read_text(encoding="utf-8")
    # Written by hand it shows an import where it is used.
    ignored = ["--ignore", "E402,D101"] if by_hand else []
    run(tree, "-m", "ruff", "check", "--no-cache", *ignored, str(EXAMPLE), str(MODEL))
    run(tree, "-m", "ruff", "format", "--no-cache", "--check", str(EXAMPLE), str(MODEL))


def test_nothing_else_is_written(tree: Path) -> None:
    """Last of the tests that run something in the tree."""
    written = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    assert written == copied_files() | set(page_files("short"))
