# SPDX-License-Identifier: Apache-2.0
"""`poptransformer.load`: what it takes, and what it says to wrong arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import poptransformer
from poptransformer import native
from poptransformer.errors import ConfigError, PopTransformerError
from tests.unit.runtime import tiny

PROMPT = tiny.PROMPTS[0]


def test_a_checkpoint_as_text_or_path() -> None:
    for name in (tiny.folder(), str(tiny.folder()), tiny.folder() / "model.safetensors"):
        assert poptransformer.load(name).generate(PROMPT, max_new_tokens=12) == tiny.reference_ids(PROMPT)


def test_settings_reach_the_model() -> None:
    engine = poptransformer.load(tiny.folder(), precision="bf16", max_length=20, batch_size=3, threads=1)
    info = engine.runtime.compiled.info
    assert (info.precision, info.max_length, engine.runtime.max_length) == ("bf16", 20, 20)
    assert engine.runtime.settings.num_threads == 1
    assert len(engine.generate([1] * 15, ignore_eos=True)) == 5


def test_the_graph_is_fused_unless_it_should_not_be() -> None:
    for fuse, expected in ((True, 4 * 2 + 1), (False, 0)):
        engine = poptransformer.load(tiny.folder(), fuse=fuse)
        for opened in (engine, poptransformer.load(engine.save(tiny.new_folder("fused") / "model"))):
            op_types = [node.op_type for node in opened.runtime.compiled.model.graph]
            assert op_types.count("FusedLinear") == expected
            assert opened.generate(PROMPT, max_new_tokens=12) == tiny.reference_ids(PROMPT)


def test_max_length_is_what_the_model_was_trained_for() -> None:
    assert tiny.engine().runtime.max_length == 64
    assert tiny.engine("gpt2").runtime.max_length == 64
    assert poptransformer.load(tiny.folder(), max_length=100).runtime.max_length == 100  # rotary: any number works
    with pytest.raises(ConfigError, match="max_length is 65, but the checkpoint has embeddings for 64 positions"):
        poptransformer.load(tiny.folder("gpt2"), max_length=65)


@pytest.mark.parametrize("source", [tiny.folder, tiny.saved], ids=["checkpoint", "saved"])
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"precision": "fp17"}, r"Invalid precision fp17, options: \['fp32', 'fp16', 'bf16'.*Nearest: fp16"),
        ({"precision": {"lm_head*": "int5"}}, r"Invalid precision int5 for lm_head\*, options: .*Nearest: int"),
        (
            {"quantization": {"int4_blok": 64}},
            r"Unknown key global_args\.quantization\.int4_blok\. Nearest: int4_block",
        ),
        ({"quantization": {"int4_block": 48}}, r"Invalid int4_block 48, options: \['32', '64', '128'\]"),
        ({"model_type": "shards"}, r"Invalid model_type shards, options: \['shard', 'tp'\]. Nearest: shard"),
        ({"num_replicas": 2}, "num_replicas is 2, but model_type is shard, which runs on one replica"),
        ({"num_replicas": 0}, "num_replicas must be an integer of at least 1, found 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, found 0"),
        ({"threads": 0}, "threads must be an integer of at least 1, found 0"),
        ({"threads": "two"}, "threads must be an integer of at least 1, found 'two'"),
        ({"max_length": 0}, "max_length"),
    ],
    ids=str,
)
def test_wrong_settings(source: Any, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        poptransformer.load(source(), **settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"precision": "fp16"}, "was saved with precision fp32, not fp16. Load it without precision"),
        ({"precision": {"*": "int4"}}, r"was saved with precision fp32, not \{\"\*\": \"int4\"\}"),
        ({"max_length": 32}, "was saved with max_length 64, not 32. Load it without max_length"),
        ({"fuse": False}, "was saved with fuse True, not False. Load it without fuse"),
        ({"model_type": "tp"}, "was saved with model_type shard, not tp. Load it without model_type"),
        ({"fp8_cache": True}, "was saved with fp8_cache False, not True. Load it without fp8_cache"),
        ({"quantization": {"int4_block": 64}}, "was saved with int4_block 32, not 64. Load it without int4_block"),
    ],
)
def test_a_saved_model_keeps_its_settings(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        poptransformer.load(tiny.saved(), **settings)
    same = {"model_type": "shard", "fuse": True, "fp8_cache": False, "quantization": {"int4_block": 32}}
    poptransformer.load(tiny.saved(), precision="fp32", max_length=64, **same)


def test_a_saved_model_knows_how_it_was_built() -> None:
    folder = poptransformer.load(tiny.folder(), model_type="tp", fuse=False).save(tiny.new_folder("tp") / "model")
    expected = tiny.reference_ids(PROMPT)
    assert poptransformer.load(folder).generate(PROMPT, max_new_tokens=12) == expected
    assert poptransformer.load(folder, model_type="tp", fuse=False).generate(PROMPT, max_new_tokens=12) == expected
    with pytest.raises(ConfigError, match="was saved with fuse False, not True"):
        poptransformer.load(folder, fuse=True)
    with pytest.raises(ConfigError, match="was saved with model_type tp, not shard"):
        poptransformer.load(folder, model_type="shard")


def test_an_unknown_architecture() -> None:
    folder = tiny.new_folder("unknown")
    (folder / "model.safetensors").write_bytes((tiny.folder() / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "lama"}))
    with pytest.raises(ConfigError, match="No model here builds model_type 'lama'.*Nearest: llama"):
        poptransformer.load(folder)


def test_a_missing_weight() -> None:
    folder = tiny.new_folder("short")
    (folder / "model.safetensors").write_bytes((tiny.folder() / "model.safetensors").read_bytes())
    config = json.loads((tiny.folder() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(PopTransformerError, match=r"model\.layers\.2\.input_layernorm\.weight.*model\.layers\.1\."):
        poptransformer.load(folder)


def test_nothing_there() -> None:
    for name in ("/nowhere/model", Path("/nowhere"), "./nowhere"):
        with pytest.raises(PopTransformerError, match="nowhere"):
            poptransformer.load(name)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, poptransformer; print([m for m in ('torch', 'onnxruntime', 'onnx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# -- without the native library ---------------------------------------------------------------------------------------

GENERATE = """
import json, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
import poptransformer

engine, other = (poptransformer.load(folder) for folder in sys.argv[1:])
params = engine.params([[72, 101]], max_new_tokens=6)
answers = [engine.generate([72, 101], max_new_tokens=6), other.generate([72, 101], max_new_tokens=6)]
answers += engine.runtime.generate([[72, 101]], params, engine.stop_token_ids)
answers += engine.generate([[72, 101]], max_new_tokens=6, temperature=0.9, seed=3)
assert not {"torch", "transformers"} & set(sys.modules)
json.dump(answers, sys.stdout)
"""


def generated(library: str) -> tuple[list[list[int]], list[str]]:
    """Ids, and lines of the log, of a process with that library; two engines, each with several sessions."""
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(tiny.folder()), str(tiny.saved())],
        env={**os.environ, native.LIBRARY_VARIABLE: library},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return json.loads(done.stdout), done.stderr.splitlines()


def here() -> list[list[int]]:
    engine = tiny.engine()
    greedy = engine.generate([72, 101], max_new_tokens=6)
    return [greedy] * 3 + engine.generate([[72, 101]], max_new_tokens=6, temperature=0.9, seed=3)


def test_a_missing_library_is_told_once_and_changes_nothing() -> None:
    path = tiny.scratch() / "missing.so"
    answers, log = generated(str(path))
    assert answers == here()
    (warning,) = log
    assert warning.startswith(f"WARNING the custom ops are not built: {path} does not exist.")
    assert f"run `make` in {Path(__file__).parents[3]}" in warning


def test_a_broken_library_is_told_once_and_changes_nothing() -> None:
    path = tiny.scratch() / "broken.so"
    path.write_bytes(b"\x7fELF" + b"\xff" * 5000)
    answers, log = generated(str(path))
    assert answers == here()
    (warning,) = log
    assert warning.startswith(f"WARNING the custom ops in {path} do not load:")
    assert "run `make`" in warning


def test_a_disabled_library_is_no_news() -> None:
    assert generated("none") == (here(), [])
