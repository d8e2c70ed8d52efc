# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes: the same text, and an end in time, with names, whatever happens to one of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mpi.conftest import GPT2, ROOT, TWO, Hosts, Job, program

pytestmark = pytest.mark.mpi
Start = Callable[..., Job]
SHORT = ("model.max_loop=24", "log_level=error")
LONG = ("session.timeout_s=3", "log_level=error")


def of_threads(*arguments: str) -> str:
    """What the same configuration writes with ranks that are threads."""
    command = [sys.executable, "inference.py", *arguments, "session.distributed=threads"]
    return subprocess.run(command, cwd=GPT2, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.parametrize(
    ("ranks", "plan"),
    [
        (2, ("global_args.num_replicas=2",)),
        (2, ("global_args.num_replicas=1", "model.layer_per_ipu=[1,3]")),
        (
            4,
            (
                "global_args.num_replicas=2",
                "model.layer_per_ipu=[2,2]",
                "global_args.enable_pipeline=true",
                "global_args.batch_size=1",
                "global_args.batch_per_step=2",
                "model.topk=5",
                "model.seed=3",
            ),
        ),
    ],
    ids=["replicas", "stages", "both"],
)
def test_the_text_is_that_of_threads(start: Start, ranks: int, plan: tuple[str, ...]) -> None:
    arguments = ("--config-name=tp", *plan, *SHORT)
    job = start("-n", str(ranks), *program(*arguments, "session.distributed=mpi"))
    assert job.wait() == 0, job.text
    assert job.text == of_threads(*arguments), "rank 0 writes, the others do not"


def test_a_draw_without_a_seed_is_the_same_on_all_ranks(start: Start) -> None:
    """Else the ranks' caches would differ, and the text be noise; they even would end at different lengths."""
    job = start("-n", "2", *program(*TWO, *SHORT, "model.topk=0", "model.early_stop=true"))
    assert job.wait() == 0, job.text
    assert "My name is Lewis" in job.text


def test_a_plan_is_verified(start: Start) -> None:
    arguments = ["--config-dir", str(GPT2 / "conf"), *TWO, "--steps", "4", "log_level=error"]
    script = str(ROOT / "poptransformer" / "verify_plan.py")
    job = start("-n", "2", "-genv", "PYTHONPATH", str(ROOT), *program(*arguments, script=script))
    assert job.wait() == 0, job.text
    assert "2 replicas x 1 stages against one device" in job.text and "ok: within the bound" in job.text


def test_another_number_of_ranks(start: Start) -> None:
    job = start("-n", "3", *program(*TWO))
    assert job.wait() != 0
    assert "The plan has 2 ranks (2 replicas x 1 stages), but mpiexec started 3. Use `mpiexec -n 2" in job.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.max_length=100", r"The ranks differ in max_length: 256 on rank 0, 100 on rank 1"),
        ("global_args.precision=int8", r"The ranks differ in build: "),
        ("inputs.input_string_list=[Hello]", r"The ranks differ in inputs: "),
        ("model.seed=5", r"The ranks differ in model.seed: None on rank 0, 5 on rank 1"),
    ],
)
def test_ranks_with_another_configuration_do_not_start(start: Start, change: str, named: str) -> None:
    job = start("-n", "1", *program(*TWO, "log_level=error"), ":", "-n", "1", *program(*TWO, change, "log_level=error"))
    assert job.wait() != 0
    assert re.search(named, job.text), job.text
    assert "My name is" not in job.text


def test_a_copy_of_the_checkpoint_is_as_good_and_another_one_is_refused(start: Start, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(GPT2 / "tiny", copy)  # with times of its own
    both = program(*TWO, *SHORT), ":", "-n", "1", *program(*TWO, *SHORT, f"model.hf_model_name={copy}")
    job = start("-n", "1", *both[0], *both[1:])
    assert job.wait() == 0, job.text
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    job = start("-n", "1", *both[0], *both[1:])
    assert job.wait() != 0
    assert "The ranks differ in checkpoint (hash of its content)" in job.text


def test_a_rank_that_is_killed(start: Start) -> None:
    job = start("-n", "2", *program(*TWO, *LONG))
    job.wait_for("like to")
    began = time.monotonic()
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.wait() != 0
    assert time.monotonic() - began < 3
    assert re.search(r"error: rank 1 was killed or crashed; it was last in \S+/All(Reduce|Gather)\n", job.text), (
        job.text
    )


def test_a_rank_that_hangs(start: Start) -> None:
    job = start("-n", "2", *program(*TWO, *LONG))
    job.wait_for("like to")
    began = time.monotonic()
    ranks = job.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    assert job.wait() != 0
    assert 2.5 < time.monotonic() - began < 10
    assert re.search(
        r"error: rank 0 waited 3 s in \S+/All(Reduce|Gather) for rank 1, which does not answer", job.text
    ), job.text
    time.sleep(1)
    assert not any(Path(f"/proc/{process}").exists() and not is_zombie(process) for process in ranks.values())


def is_zombie(process: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{process}/status").read_text()


def test_a_rank_that_raises(start: Start) -> None:
    script = str(Path(__file__).with_name("failing.py"))
    environment = "-genv", "PYTHONPATH", str(ROOT)
    job = start("-n", "2", *environment, *program(*TWO, *LONG, script=script))
    assert job.wait() != 0
    assert re.search(r"error: rank 1: rank 1 failed: .*Name:'sample/SampleToken'.*temperature", job.text), job.text


def test_a_stage_that_is_killed(start: Start) -> None:
    plan = "--config-name=tp", "global_args.num_replicas=1", "model.layer_per_ipu=[2,2]", "session.distributed=mpi"
    job = start("-n", "2", *program(*plan, *LONG))
    job.wait_for("like to")
    os.kill(job.ranks()[0], signal.SIGKILL)
    assert job.wait() != 0
    assert "error: rank 0 was killed or crashed; it was last in" in job.text


def test_a_partly_written_shard_is_made_anew(start: Start, tmp_path: Path) -> None:
    cached = (*TWO, "model.max_loop=24", f"session.execution_cache_name={tmp_path}")
    text = start("-n", "2", *program(*cached, "log_level=error"))
    assert text.wait() == 0, text.text
    shards = sorted(tmp_path.glob("*-replica-*/replica-*/weights.bin"))
    assert [shard.parent.name for shard in shards] == ["replica-0", "replica-1"], "each rank stores its own"
    with shards[1].open("r+b") as file:  # as long as it should be, but its end was never written
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    again = start("-n", "2", *program(*cached))
    assert again.wait() == 0, again.text
    assert "was it only partly written?" in again.text and "Compiling again" in again.text
    assert text.text.splitlines()[0] in again.text


def test_two_hosts(start: Start, hosts: Hosts) -> None:
    before = hosts.received_bytes(1)
    job = start(*hosts.arguments(), *program(*TWO, *SHORT))
    assert job.wait() == 0, job.text
    assert job.text == of_threads("--config-name=tp", "global_args.num_replicas=2", *SHORT)
    # 9 sums of 2 rows x 128 columns and the logits of 2 rows, for each of 24 tokens.
    assert hosts.received_bytes(1) - before > 24 * 9 * 2 * 128 * 4


def test_a_cable_that_is_pulled(start: Start, hosts: Hosts) -> None:
    job = start(*hosts.arguments(), *program(*TWO, *LONG))
    job.wait_for("like to")
    subprocess.run(["ip", "link", "set", hosts.cable(2), "down"], check=True)
    began = time.monotonic()
    job.wait()
    assert time.monotonic() - began < 15
    assert re.search(r"rank 0 waited 3 s in \S+ for rank 1, which does not answer", job.text), job.text
