# SPDX-License-Identifier: Apache-2.0
"""Jobs of several processes, on this host and on hosts made of network namespaces."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPT2 = ROOT / "examples" / "gpt2"
TWO = ("--config-name=tp", "global_args.num_replicas=2", "session.distributed=mpi")
TIMEOUT = 120


def find_mpiexec() -> str | None:
    """The launcher of this environment, else the system's."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


@pytest.fixture(scope="session", autouse=True)
def mpiexec() -> str:
    pytest.importorskip("mpi4py", reason="the extra `mpi` is not installed: pip install '.[mpi]'")
    path = find_mpiexec()
    if path is None:
        pytest.skip("there is no mpiexec")
    return path


def program(*arguments: str, script: str = "inference.py") -> list[str]:
    return [sys.executable, "-m", "mpi4py", script, *arguments]


class Job:
    """A running mpiexec and what it has written so far."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        self._mark = f"POPTRANSFORMER_TEST_JOB={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            command,
            cwd=GPT2,
            env={**environment, "OMP_NUM_THREADS": "1", name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._pipe = self.process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self.text = ""

    def wait_for(self, text: str) -> None:
        """Returns when the job has written something."""
        self._until(lambda: text in self.text, f"{text!r} was not written")

    def wait(self) -> int:
        """Returns the exit status."""
        self._until(lambda: self.process.poll() is not None, "the job did not end")
        self._read()
        return self.process.returncode

    def ranks(self) -> dict[int, int]:
        """Process of each rank."""
        found = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                names = (folder / "cmdline").read_bytes().split(b"\0")
                if b"mpi4py" in names and self._mark.encode() in variables:
                    for variable in variables:
                        if variable.startswith((b"PMI_RANK=", b"OMPI_COMM_WORLD_RANK=")):
                            found[int(variable.partition(b"=")[2])] = int(folder.name)
        return found

    def _until(self, done: Callable[[], bool], problem: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not done():
            assert time.monotonic() < deadline, f"{problem} within {TIMEOUT} s:\n{self.text}"
            self._read()
            time.sleep(0.01)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._pipe, 1 << 16):
                self.text += part.decode(errors="replace")


@pytest.fixture
def start(mpiexec: str) -> Iterator[Callable[..., Job]]:
    """Starts `mpiexec` with these arguments; ends what is left of it."""
    jobs: list[Job] = []

    def begin(*arguments: str) -> Job:
        jobs.append(Job([mpiexec, *arguments]))
        return jobs[-1]

    yield begin
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGCONT)
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()


class Hosts:
    """Hosts with addresses of their own: network namespaces on a bridge, and a stand-in for ssh."""

    NETWORK = "10.213.77"
    NUMBERS = itertools.count()  # the kernel takes a while to forget names

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.bridge = f"pt{os.getpid()}n{next(self.NUMBERS)}"
        self.names = [f"{self.bridge}-{number}" for number in range(1, count + 1)]
        self.hostfile, self.shell = folder / "hosts", folder / "ssh"
        self.hostfile.write_text("".join(f"{self.NETWORK}.{number}:1\n" for number in range(1, count + 1)))
        self.shell.write_text(
            "#!/bin/sh\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            f'name={self.bridge}-"${{1##*.}}"; shift\n'
            'exec ip netns exec "$name" sh -c "$*"\n'
        )
        self.shell.chmod(0o755)

    def up(self) -> None:
        """Makes the hosts.

        Raises:
            subprocess.CalledProcessError: that is not allowed here.
        """
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.NETWORK}.254/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for number, name in enumerate(self.names, 1):
            ip("netns", "add", name)
            ip("link", "add", self.cable(number), "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", self.cable(number), "master", self.bridge, "up")
            ip("-n", name, "addr", "add", f"{self.NETWORK}.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")

    def down(self) -> None:
        for number, name in enumerate(self.names, 1):
            ip("link", "del", self.cable(number), check=False)
            ip("netns", "del", name, check=False)
        ip("link", "del", self.bridge, check=False)

    def cable(self, number: int) -> str:
        return f"{self.bridge}v{number}"

    def received_bytes(self, number: int) -> int:
        name = self.names[number - 1]
        return int(ip("netns", "exec", name, "cat", "/sys/class/net/eth0/statistics/rx_bytes"))

    def arguments(self) -> list[str]:
        """Arguments of MPICH's mpiexec for a job on these hosts.

        UCX is told to use the network: it would find out that all hosts have the same memory.
        """
        options = {"-f": self.hostfile, "-launcher": "ssh", "-launcher-exec": self.shell, "-iface": self.bridge}
        options["-localhost"] = f"{self.NETWORK}.254"
        flat = [str(part) for option in options.items() for part in option]
        return [*flat, "-genv", "UCX_TLS", "tcp,self", "-genv", "UCX_NET_DEVICES", "eth0", "-n", str(self.count)]


def ip(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True).stdout


@pytest.fixture
def hosts(mpiexec: str, tmp_path: Path) -> Iterator[Hosts]:
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False).stdout
    if "HYDRA" not in version:
        pytest.skip("this test speaks to MPICH's mpiexec")
    made = Hosts(2, tmp_path)
    try:
        made.up()
    except (OSError, subprocess.CalledProcessError) as error:
        made.down()
        reason = str(getattr(error, "stderr", None) or error)
        if "exists" in reason:  # no fault of the machine's
            raise
        pytest.skip(f"network namespaces cannot be made here: {reason}")
    yield made
    made.down()
