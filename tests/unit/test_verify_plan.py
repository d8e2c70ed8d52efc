# SPDX-License-Identifier: Apache-2.0
"""The command that compares a parallel plan with the model in one piece."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from poptransformer.verify_plan import StepComparison, kl_divergence, report, verdict

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "poptransformer.verify_plan", "--config-dir", "examples/gpt2/conf", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_good_plan() -> None:
    done = run("--config-name", "tp", "--steps", "4", "global_args.num_replicas=2", "log_level=error")
    assert done.returncode == 0, done.stderr
    assert "2 replicas x 1 stages against one device" in done.stdout
    assert re.search(r"^ +3 +\S+e-0[56789] +\S+e-\d\d +2/2", done.stdout, re.MULTILINE)
    assert "greedy agreement 100.00%" in done.stdout and "ok: within the bound" in done.stdout


def test_stages_alone_are_bit_equal() -> None:
    done = run("--config-name", "sharding", "--steps", "3", "model.layer_per_ipu=[1,3]", "log_level=error")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 steps bit-equal" in done.stdout


def test_a_plan_past_the_bound() -> None:
    done = run("--config-name", "tp", "--steps", "2", "--bound", "1e-9", "log_level=error")
    assert done.returncode == 1
    assert "FAILED: the largest difference" in done.stdout and "past the bound 1e-09" in done.stdout


def test_a_plan_that_cannot_be() -> None:
    done = run("--config-name", "tp", "global_args.num_replicas=3", "log_level=error")
    assert done.returncode == 1
    assert "num_replicas=3 does not divide 4 heads; valid: 1, 2, 4; power of two: 1, 2, 4" in done.stderr


def test_divergence() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32))
    expected = [0.5 * np.log(2) - 0.25 * np.log(2), 0.0]
    np.testing.assert_allclose(kl_divergence(logits, other), expected, atol=1e-6)
    step = StepComparison.of(logits, other)
    assert (step.agreeing, step.rows, step.bit_equal) == (1, 2, False)
    assert "1/2" in report([step])
    assert StepComparison.of(logits, logits.copy()).bit_equal


def test_nan_is_past_every_bound() -> None:
    logits = np.zeros((1, 4), np.float32)
    steps = [StepComparison.of(logits, np.full_like(logits, np.nan))]
    assert verdict(steps, True, None, None) and verdict(steps, False, None, None)


def test_packed_weights_are_judged_by_their_distributions() -> None:
    logits = np.zeros((1, 4), np.float32)
    steps = [StepComparison.of(logits, logits + np.float32(0.01) * np.arange(4, dtype=np.float32))]
    assert verdict(steps, True, None, None) is not None
    assert verdict(steps, False, None, None) is None
