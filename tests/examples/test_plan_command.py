# SPDX-License-Identifier: Apache-2.0
"""`python -m poptransformer.plan`, and `device=` and `auto` in the examples, as users type them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GPT2, LLAMA2 = ROOT / "examples" / "gpt2", ROOT / "examples" / "llama2"


def plan(cwd: Path, *arguments: str, code: int = 0, conf: Path = GPT2 / "conf") -> tuple[str, str]:
    """Runs the command in a folder; returns stdout without line breaks, and stderr."""
    command = [sys.executable, "-m", "poptransformer.plan", f"--config-dir={conf}", *arguments]
    env = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return re.sub(r"\s+", " ", done.stdout), done.stderr


def infer(*arguments: str, folder: Path = GPT2) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "inference.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_plan_and_its_files(tmp_path: Path) -> None:
    out, _ = plan(tmp_path, "--config-name=sharding", "device=c600", "model=gpt2-xl")
    assert "num_replicas=1 layer_per_ipu=[8, 10, 10, 10, 10]" in out
    assert "Your own plan, 8 stages on 8 IPUs with layer_per_ipu=[0, 6, 7, 7, 7, 7, 7, 7], fits" in out
    assert "unvalidated" in out
    folder = tmp_path / "plan"
    names = {path.name for path in folder.iterdir()}
    assert names == {"plan.json", "planned.yaml", "memory.png", "liveness.png", "timeline.png", "sweep.png"}
    content = json.loads((folder / "plan.json").read_text())
    assert content["schema_version"] == 1
    assert content["device"]["constants"]["tile_bytes"]["value"] == 638_976
    assert content["assumptions"] and content["validation"]
    assert content["plan"]["layer_per_ipu"] == [8, 10, 10, 10, 10]
    assert content["own_plan"]["fits"] is True
    assert yaml.safe_load((folder / "planned.yaml").read_text())["model"]["layer_per_ipu"] == [8, 10, 10, 10, 10]


def test_the_written_configuration_runs(tmp_path: Path) -> None:
    plan(tmp_path, "plan.pictures=false", "plan.folder=mine")
    out, _ = infer(f"--config-dir={tmp_path / 'mine'}", "--config-name=planned", "model.max_loop=4")
    assert out.startswith("My name is Lewis and I like to")
    again, _ = plan(tmp_path, "--config-name=planned", "plan.pictures=false", conf=tmp_path / "mine")
    assert "plan 1 stage on 1 IPU" in again


# An IPU of 8 small tiles, so that a small model needs replicas and stages.
SMALL_IPU = [
    "device=c600",
    *(
        f"device.constants.{name}.value={value}"
        for name, value in {"tiles": 8, "tile_bytes": 60_000, "code_bytes": 64, "code_bytes_per_op": 8}.items()
    ),
    "model.max_length=32",
    "plan.prompt_length=8",
]
PROMPTS = "inputs.input_string_list=[My name is,It was a fine,She had]"


@pytest.mark.parametrize("objective", ["ipus", "throughput"])
def test_planned_replicas_and_stages_write_what_one_device_writes(tmp_path: Path, objective: str) -> None:
    """Of one stage after the other, and of a pipeline: the plan is run, and reported."""
    plan(tmp_path, *SMALL_IPU, "plan.pictures=false", f"plan.objective={objective}")
    written = yaml.safe_load((tmp_path / "plan" / "planned.yaml").read_text())
    is_pipelined = objective == "throughput"
    asked = written["global_args"]
    assert (asked["num_replicas"], asked["enable_pipeline"]) == (2, is_pipelined)
    assert asked["batch_per_step"] == (3 if is_pipelined else 1)
    assert written["model"]["layer_per_ipu"] == [0, 2, 2]
    run = [PROMPTS, "model.max_length=32", "log_level=info"]
    planned, err = infer(f"--config-dir={tmp_path / 'plan'}", "--config-name=planned", *run, *SMALL_IPU[:5])
    kind = ", pipelined" if is_pipelined else ""
    assert f"Emulated on c600: 3 stages x 2 replicas{kind} on 6 IPUs" in err
    one_device, _ = infer(f"global_args.batch_per_step={asked['batch_per_step']}", *run)
    assert planned == one_device
    assert "My name is" in planned


def test_auto_runs_in_replicas_and_stages() -> None:
    auto = ["model.layer_per_ipu=auto", "global_args.num_replicas=auto", "plan.objective=throughput", "log_level=info"]
    out, err = infer(*SMALL_IPU, *auto)
    assert "planned for c600: num_replicas=2, layer_per_ipu=[0, 2, 2], pipelined" in err
    assert "Emulated on c600: 3 stages x 2 replicas, pipelined on 6 IPUs" in err
    assert out == infer("model.max_length=32")[0]


def test_replicas_that_cannot_be(tmp_path: Path) -> None:
    """The planner says what the engine says."""
    asked = ["global_args.model_type=tp", "global_args.num_replicas=3"]
    message = "num_replicas=3 does not divide 4 heads; valid: 1, 2, 4; power of two: 1, 2, 4 (transformer.h.0.attn)"
    out, _ = plan(tmp_path, *asked, "plan.pictures=false")
    assert f"Your own plan: {message}" in out
    with pytest.raises(AssertionError, match=re.escape(message)):
        infer(*asked)


def test_other_sources_of_configurations(tmp_path: Path) -> None:
    conf = LLAMA2 / "conf"
    out, _ = plan(
        tmp_path, "model=llama-2-7b", "device=bow", "plan.pictures=false", "plan.objective=throughput", conf=conf
    )
    assert "batches are in flight" in out
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({
            "model_type": "gpt2", "vocab_size": 100, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64,
        })
    )  # fmt: skip
    override = f"model.override_hfconfig_from_json={config}"
    out, _ = plan(tmp_path, override, "model.layer_per_ipu=[1,2]", "plan.pictures=false", "model.max_length=32")
    assert "3 blocks" in out
    assert "Your own plan, 2 stages on 2 IPUs with layer_per_ipu=[1, 2], fits" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["device=gc200", "global_args.precision=fp8"], "fp8 needs C600"),
        (["model=gpt2-xl", "device=c600", "plan.prompt_length=300"], "prompt 300 > max_length 264"),
        (["plan.objective=speed"], "Invalid objective speed, options: ['latency', 'throughput', 'ipus']"),
        (["model=gpt2-xl", "plan.max_ipus=2"], "No plan fits: the weights take 3.1 GB, the SRAM of 3.3 IPUs"),
        (["device=c601"], "c601"),
        (["device=c600", "device.constants.tiles.value=0"], "tiles must be a number above 0, found 0"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    _, err = plan(tmp_path, *arguments, "plan.pictures=false", code=1)
    assert message in err
    assert "Traceback" not in err


def test_a_users_own_plan_that_is_wrong_is_told_and_replaced(tmp_path: Path) -> None:
    out, _ = plan(tmp_path, "model=gpt2-xl", "model.layer_per_ipu=[0,6,7,7,7,7,7,6]", "plan.pictures=false")
    assert "layer_per_ipu sums to 47, model has 48 layers; try [0,6,7,7,7,7,7,7]" in out
    assert "layer_per_ipu=[8, 10, 10, 10, 10]" in out


def test_a_machine_of_the_users_own(tmp_path: Path) -> None:
    """Adding a file is enough."""
    (tmp_path / "conf" / "device").mkdir(parents=True)
    (tmp_path / "conf" / "mine.yaml").write_text(
        "defaults:\n  - poptransformer\n  - override device: half\n  - _self_\n"
        "model:\n  _target_: poptransformer.models.GPT2DecModel\n  hf_model_name: gpt2-xl\n  max_length: 264\n"
    )
    content = yaml.safe_load((ROOT / "poptransformer" / "ipu" / "devices" / "c600.yaml").read_text())
    content["name"] = "half"
    content["constants"]["tiles"]["value"] //= 2
    (tmp_path / "conf" / "device" / "half.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(AssertionError, match="No plan fits"):
        plan(tmp_path, "--config-name=mine", "plan.pictures=false", conf=tmp_path / "conf")
    out, _ = plan(
        tmp_path, "--config-name=mine", "plan.pictures=false", "global_args.precision=int8", conf=tmp_path / "conf"
    )
    assert "half" in out


def test_several_plans_at_once(tmp_path: Path) -> None:
    plan(tmp_path, "--multirun", "model=gpt2,gpt2-medium", "plan.pictures=false")
    found = sorted(tmp_path.glob("multirun/*/*/*/plan/plan.json"))
    assert [json.loads(path.read_text())["model"] for path in found] == ["gpt2", "gpt2-medium"]


def test_an_example_on_an_emulated_device() -> None:
    out, err = infer("device=c600", "model.max_loop=4", "model.layer_per_ipu=auto", "log_level=info")
    assert out.startswith("My name is Lewis and I like to")
    assert "planned for c600: num_replicas=1, layer_per_ipu=[4]" in err
    assert "Emulated on c600: 1 stage on 1 IPU" in err
    assert "(unvalidated)" in err
    assert "Emulated" not in infer("model.max_loop=4")[1]


def test_fp8_on_an_emulated_device_has_its_formats(tmp_path: Path) -> None:
    infer("device=c600", "global_args.precision=fp8", "model.max_loop=2", f"session.profile_name={tmp_path}")
    table = (tmp_path / "quantization.txt").read_text()
    assert "e4m3fnuz" in table
    assert "e4m3fn " not in table
