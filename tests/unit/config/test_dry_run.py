# SPDX-License-Identifier: Apache-2.0
"""`--validate_only` and `--compile_only` of the Hydra applications, with replicas, stages and emulated devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import poptransformer
from poptransformer.errors import ConfigError
from poptransformer.utils.dry_run import as_overrides, dry_run

TINY = Path(__file__).parents[3] / "examples" / "gpt2" / "tiny"
PLANS: dict[str, dict[str, Any]] = {
    "2 ranks (2 x 1 stages)": {"num_replicas": 2},
    "2 ranks (1 x 2 stages)": {"layer_per_ipu": [2, 2]},
    "12 ranks (4 x 3 stages)": {"num_replicas": 4, "layer_per_ipu": [2, 2, 0]},
}


def asked(flag: str, num_replicas: Any = 1, layer_per_ipu: Any = None, device: str | None = None, **more: Any) -> Any:
    """A configuration."""
    model = {
        "_target_": "poptransformer.models.GPT2DecModel",
        "hf_model_name": str(TINY),
        "layer_per_ipu": layer_per_ipu,
    }
    model |= more.pop("model", {})
    model_type = "shard" if num_replicas == 1 else "tp"
    return OmegaConf.create(
        {
            "global_args": {"num_replicas": num_replicas, "model_type": model_type, "precision": "int8"},
            "session": {"_target_": "poptransformer.sessions.Session", "threads": 2},
            "model": model,
            "device": device,
            flag: True,
            **more,
        }
    )


@pytest.mark.parametrize("ranks", PLANS)
def test_validate_only_of_replicas_and_stages(ranks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(asked("validate_only", **PLANS[ranks], device="gc200"))
    out = capsys.readouterr().out
    assert "graph: valid, shapes inferred, every node has a kernel" in out and f"MiB on {ranks}; " in out
    replicas, stages = PLANS[ranks].get("num_replicas", 1), len(PLANS[ranks].get("layer_per_ipu", [4]))
    words = f"{stages} stage{'s' * (stages > 1)}" + (f" x {replicas} replicas" if replicas > 1 else "")
    assert f"Emulated on gc200: {words} on " in out and "Fullest tile: " in out


def test_validate_only_fills_in_what_the_planner_says(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(asked("validate_only", "auto", "auto", "c600"))
    assert "Emulated on c600: 1 stage on 1 IPU" in capsys.readouterr().out


def test_a_model_that_is_not_here_is_validated_by_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(asked("validate_only", model={"hf_model_name": "gpt2-xl"}))
    assert "weights: 1557611200 parameters" in capsys.readouterr().out


def test_what_does_not_fit_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="The model does not fit on gc2: stage 0 needs .* limit 262,144"):
        dry_run(asked("validate_only", device="gc2", model={"hf_model_name": "gpt2-xl"}))
    assert "Emulated on gc2: " in capsys.readouterr().out


@pytest.mark.parametrize("ranks", list(PLANS)[:2])
def test_compile_only_of_replicas_and_stages(ranks: str, tmp_path: Path) -> None:
    dry_run(asked("compile_only", **PLANS[ranks], compile_dir=str(tmp_path / "saved")))
    ids = poptransformer.load(tmp_path / "saved", threads=1).generate([1, 2, 3], max_new_tokens=4)
    assert len(ids) == 4
    replicas = PLANS[ranks].get("num_replicas", 1)
    files = [path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("weights.bin")]
    expected = ["weights.bin"] if replicas == 1 else [f"replica-{number}/weights.bin" for number in range(replicas)]
    assert sorted(files) == expected


@pytest.mark.parametrize("flag", ["validate_only", "compile_only"])
def test_one_process_does_it_for_all_ranks(flag: str) -> None:
    """Ranks that each compiled their share would write over each other."""
    session = {"_target_": "poptransformer.sessions.Session", "distributed": "mpi"}
    with pytest.raises(ConfigError, match=f"{flag} is done by one process for all ranks; leave out mpiexec"):
        dry_run(asked(flag, 2, compile_dir="somewhere", session=session))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--validate_only"], ["validate_only=true"]),
        (["a=1", "--compile_only", "--config-name=tp", "b=2"], ["--config-name=tp", "a=1", "compile_only=true", "b=2"]),
        (["x=1", "--config-dir", "odd=name", "~device"], ["--config-dir", "odd=name", "x=1", "~device"]),
        (["--cfg", "job", "--multirun", "a=1,2"], ["--cfg", "job", "--multirun", "a=1,2"]),
    ],
)
def test_overrides_may_stand_among_options(arguments: list[str], expected: list[str]) -> None:
    assert as_overrides(arguments) == expected
