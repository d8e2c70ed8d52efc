# SPDX-License-Identifier: Apache-2.0
"""The commands that users type, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GPT2, LLAMA2, RWKV = (ROOT / "examples" / name for name in ("gpt2", "llama2", "rwkv"))
PROMPT = "My name is Lewis and I like to"


def run(folder: Path, *arguments: str, code: int = 0, cwd: Path | None = None, **environment: str) -> tuple[str, str]:
    """Runs an example's inference.py, in its folder unless told otherwise; returns stdout and stderr."""
    env = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, "inference.py" if cwd is None else str(folder / "inference.py"), *arguments],
        cwd=cwd or folder,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_seeds_command() -> None:
    before = tree(GPT2)
    out, err = run(GPT2, "--config-name=sharding", "log_level=info", "model.topk=5", "model.max_loop=12")
    assert out.startswith(PROMPT)
    assert len(out) > len(PROMPT) + 10
    for line in (
        "Initializing model class: GPT2DecModel",
        "block 3 placed on IPU 0",
        "compiling",
        "compiled",
    ):
        assert line in err.splitlines()
    assert "loading transformer.wte.weight with shape" in err
    assert re.search(
        r"^Performance:\nbatch size: 1, precision: fp16\nmax_length: 256, decode_step: 12\n"
        r"Latency per token: [\d.]+ ms/token\nThroughput: [\d.]+ token/s, Total Latency: [\d.]+ ms$",
        err,
        re.MULTILINE,
    )
    assert tree(GPT2) == before, "a single run leaves nothing behind"


def test_streamed_text_is_the_text_of_one_call(tmp_path: Path) -> None:
    """From another working directory, too."""
    arguments = [
        "model.max_loop=12",
        "global_args.batch_size=2",
        'inputs.input_string_list=["She said", "It was"]',
    ]
    streamed, _ = run(GPT2, *arguments, cwd=tmp_path)
    assert re.fullmatch(r"\[1/2\] She said.+\n\[2/2\] It was.+\n", streamed, re.DOTALL)
    assert run(GPT2, *arguments, "stream=false", cwd=tmp_path)[0] == streamed
    assert tree(tmp_path) == set()


def test_tensor_parallel_text_is_that_of_one_replica(tmp_path: Path) -> None:
    arguments = ("--config-name=tp", "model.max_loop=24", f"session.execution_cache_name={tmp_path}", "log_level=info")
    one, _ = run(GPT2, *arguments, "global_args.num_replicas=1")
    four, err = run(GPT2, *arguments)
    assert four == one and "building replica 3 of 4" in err
    again, err = run(GPT2, *arguments)
    assert again == one and "using the compiled model in" in err
    staged, err = run(GPT2, *arguments, "global_args.num_replicas=2", "model.layer_per_ipu=[1,3]")
    assert staged == one and "block 1 placed on IPU 1" in err


def test_llama2_answers() -> None:
    out, err = run(LLAMA2, "model.max_loop=8")
    assert out.startswith("> What is gravity?\n")
    assert "gravity" in out.split("\n", 1)[1].lower()
    assert "decode_step: 8" in err


def test_rwkv_writes_on() -> None:
    out, err = run(RWKV, "--config-name=sharding", "model.max_loop=12")
    assert out.startswith(PROMPT)
    assert len(out) > len(PROMPT) + 10
    assert "decode_step: 12" in err
    replica = run(RWKV, "--config-name=tp", "global_args.num_replicas=1", "model.max_loop=12", "stream=false")
    assert replica[0] == out


def test_cfg_job() -> None:
    out, _ = run(GPT2, "--cfg", "job", "model=gpt2-xl", "model.topk=5")
    config = yaml.safe_load(out)
    assert set(config) == {
        "log_level",
        "popart_log_level",
        "stream",
        "validate_only",
        "compile_only",
        "compile_dir",
        "global_args",
        "session",
        "model",
        "inputs",
        "plan",
    }
    assert (config["model"]["hf_model_name"], config["model"]["topk"]) == ("gpt2-xl", 5)


def test_help_lists_models_and_keys() -> None:
    out, _ = run(GPT2, "--help")
    assert "model: gpt2, gpt2-medium, gpt2-xl, tiny" in out
    assert "early_stop: false" in out


def test_tab_completion() -> None:
    def complete(line: str) -> list[str]:
        return run(GPT2, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="2")[0].split()

    assert complete("python inference.py model=gpt2-") == ["model=gpt2-medium", "model=gpt2-xl"]
    assert complete("python inference.py model.top") == ["model.top_p=", "model.topk="]


def test_multirun(tmp_path: Path) -> None:
    out, err = run(
        GPT2,
        "--multirun",
        "model.max_loop=2,4",
        "log_level=info",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        cwd=tmp_path,
    )
    first, second = out.splitlines()
    assert first.startswith(PROMPT)
    assert second.startswith(first)
    assert "decode_step: 2" in err
    assert "decode_step: 4" in err
    assert "#1 : model.max_loop=4" in err


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    inputs = {"input_string_list": ["Oh", "More than the batch holds"]}
    mine = {"defaults": ["sharding", "_self_"], "model": {"max_loop": 3}, "inputs": inputs}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    out, err = run(GPT2, "--config-dir", str(tmp_path), "--config-name=mine")
    assert out.startswith("Oh")
    assert "More" not in out
    assert "num input strings is larger than batch size, truncating" in err
    assert "decode_step: 3" in err


def test_plain_hydra_main(tmp_path: Path) -> None:
    """What the README's users write: Hydra's own decorator, and a file with every key they need."""
    shutil.copytree(GPT2 / "conf", tmp_path / "conf")
    model = {
        "_target_": "poptransformer.models.GPT2DecModel",
        "hf_model_name": str(GPT2 / "tiny"),
        "max_loop": 3,
    }
    (tmp_path / "conf" / "sharding.yaml").write_text(
        yaml.safe_dump(
            {
                "global_args": {"batch_size": 1, "precision": "fp32"},
                "session": {"_target_": "poptransformer.sessions.Session"},
                "model": model,
                "inputs": {"input_string_list": ["Oh"]},
                "log_level": "info",
                "popart_log_level": "off",
            }
        )
    )
    (tmp_path / "inference.py").write_text(
        f"""
import sys
import hydra
sys.path.insert(0, {str(ROOT)!r})
from poptransformer.utils import prepare_model_session

@hydra.main(version_base=None, config_path="conf", config_name="sharding")
def main(cfg):
    session, model = prepare_model_session(cfg)
    session.run(model.build_input_dict(**cfg.inputs))
    print("text:", model.build_output_dict(session.anchor_arrays)["output_strings"])

main()
"""
    )
    out, _ = run(tmp_path)
    assert "text: ['" in out
    assert "compiling" in out  # Hydra's own logging writes to stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.topkk=5"], "error: Unknown key model.topkk. Nearest: topk"),
        (["model=gpt2-xxl"], "error: model has no option gpt2-xxl. Nearest: gpt2-xl"),
        (["global_args.precision=fp17"], "error: Invalid precision fp17, options: ["),
        (["model.hf_model_name=./nowhere"], "error: there is no './nowhere'; expected a folder"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], message: str) -> None:
    out, err = run(GPT2, *arguments, code=1)
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_wrong_layer_per_ipu() -> None:
    _, err = run(GPT2, "model.layer_per_ipu=[1,1]", code=1)
    assert "layer_per_ipu sums to 2, model has 4 layers; try [2,2]" in err
    assert "Traceback" not in err


def test_a_key_misspelt_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [sharding, _self_]\nmodel: {max_lop: 3}\n")
    _, err = run(GPT2, "--config-dir", str(tmp_path), "--config-name=mine", code=1)
    assert err.startswith("error: Unknown key model.max_lop. Nearest: max_loop")


def test_the_whole_stack_on_request() -> None:
    _, err = run(GPT2, "global_args.precision=fp17", code=1, HYDRA_FULL_ERROR="1")
    assert "Traceback" in err
    assert "ConfigError: Invalid precision fp17" in err


def test_a_failing_job_of_several_is_named(tmp_path: Path) -> None:
    sweep = f"hydra.sweep.dir={tmp_path}"
    _, err = run(GPT2, "--multirun", "global_args.precision=fp17,fp18", sweep, code=1)
    assert "Error executing job with overrides: ['global_args.precision=fp17']" in err
    assert "error: Invalid precision fp17" in err
    assert "Traceback" not in err


def test_a_reader_that_has_gone() -> None:
    command = f'{sys.executable} inference.py model.max_loop=200 | head -c 5; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], cwd=GPT2, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "My na 141\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_beam_search_is_printed_when_it_is_done() -> None:
    streamed, _ = run(GPT2, "model.num_beams=3", "model.max_loop=6")
    at_once, _ = run(GPT2, "model.num_beams=3", "model.max_loop=6", "stream=false")
    assert streamed == at_once


# ---- as far as it goes without running --------------------------------------------------------------------------

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}


def test_validate_only_takes_no_memory_for_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (14 << 30,) * 2); import runpy, sys; " + (
        "sys.argv[0] = 'inference.py'; runpy.run_path('inference.py', run_name='__main__')"
    )
    flags = ("--validate_only", "global_args.precision=int4", "model.max_length=2048")
    done = subprocess.run(
        [sys.executable, "-c", program, *flags, f"model.override_hfconfig_from_json={tmp_path / 'config.json'}"],
        cwd=LLAMA2,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "weights: 6738415616 parameters" in done.stdout  # 26 GB in fp32
    assert "(batch 1, tokens 2048, chosen 1, slots 2048)" in done.stdout
    assert "states: 1024.00 MiB" in done.stdout  # 2 * 32 layers * 4096 * 2048 tokens in fp16


def test_validate_only_runs_nothing() -> None:
    before = tree(GPT2)
    out, err = run(GPT2, "validate_only=true")
    assert out.startswith("graph: valid, shapes inferred, every node has a kernel\n")
    (unknown,) = re.findall(r"^(\d+) values have shapes that depend on data", out, re.MULTILINE)
    assert int(unknown) < 5, "inference knows the shapes of activations"
    assert PROMPT not in out and "Performance:" not in err and tree(GPT2) == before


def test_compile_only_saves_a_model_that_loads(tmp_path: Path) -> None:
    import poptransformer

    out, err = run(GPT2, "--compile_only", f"compile_dir={tmp_path / 'saved'}", "global_args.precision=int8")
    assert out == f"compiled to {tmp_path / 'saved'}\n" and "Performance:" not in err
    ids = poptransformer.load(tmp_path / "saved").generate([1, 2, 3], max_new_tokens=4)
    assert ids == poptransformer.load(GPT2 / "tiny", precision="int8").generate([1, 2, 3], max_new_tokens=4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--compile_only",), "compile_only needs a folder for the compiled model: compile_dir=FOLDER"),
        (("--compile_only", "--validate_only"), "exclude each other"),
        (("validate_only=perhaps",), "validate_only must be true or false"),
    ],
)
def test_wrong_flags(flags: tuple[str, ...], message: str) -> None:
    assert message in run(GPT2, *flags, code=1)[1]


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [sharding, _self_]\nmodel: {max_loop: [3}\n")
    _, err = run(GPT2, "--config-dir", str(tmp_path), "--config-name=mine", code=1)
    assert err.startswith(f"error: {tmp_path / 'mine.yaml'}, line 2, column ")
    assert err.endswith("Correct the file.\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["stream=false"]], ids=["stream", "one call"])
def test_output_that_finds_no_room(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "inference.py", "model.max_loop=3", *arguments],
            cwd=GPT2,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: Writing failed: No space left on device. Free some disk space, or write to another place."
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_home_that_cannot_be_written() -> None:
    """Nothing is needed there; what is asked for there is an error of one sentence."""
    home = "/proc/nowhere"
    assert run(GPT2, "model.max_loop=3", HOME=home)[0] == run(GPT2, "model.max_loop=3")[0]
    for key, problem in (
        ("session.execution_cache_name", f"error: Cannot write to {home}/x/y: "),
        ("session.profile_name", f"error: Cannot write profiles to {home}/x/y: "),
    ):
        _, err = run(GPT2, f'{key}="~/x/y"', code=1, HOME=home)
        assert any(line.startswith(problem) for line in err.splitlines()), err
        assert "Traceback" not in err
