# SPDX-License-Identifier: Apache-2.0
"""docs/torch_to_ipu.md, followed to the letter: its files, its commands, its code, and what it says they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "torch_to_ipu.md").read_text(encoding="utf-8")
# Files, commands, code to run, and lines of output, in the order of the page.
BLOCK = re.compile(r"(?:^file: `(?P<file>.+?)`\n\n)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^ *```$", re.M | re.S)


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_page(tmp_path: Path) -> None:
    printed, kinds = "", []
    for block in BLOCK.finditer(PAGE):
        text = textwrap.dedent(block["text"])
        kinds.append(block["kind"])
        if block["file"]:
            target = tmp_path / block["file"]
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif block["kind"] == "sh":
            commands = [shlex.split(line) for line in text.splitlines()]
            assert all(command[0] == "python" for command in commands)
            printed = "".join(run(tmp_path, sys.executable, *command[1:]) for command in commands)
        elif block["kind"] == "python":
            printed = run(tmp_path, sys.executable, "-c", text)
        else:
            for line in text.splitlines():
                assert line in printed, f"{line!r} is not in:\n{printed}"
    assert kinds.count("sh") >= 6 and kinds.count("text") >= 6 and kinds.count("python") == 5
    for name in ("onnx/generator.onnx", "plan/planned.yaml", "plan/memory.png", "decoder/replica-1/weights.bin"):
        assert (tmp_path / name).is_file(), name
