# SPDX-License-Identifier: Apache-2.0
"""Runs one measurement of one engine in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from bench.catalog import ENGINES, Set
from bench.engines.job import Job
from bench.environments import python_of
from bench.models import prompts
from bench.page_cache import evict
from bench.quiet import quiet_output
from bench.runner import ROOT

TIMEOUT_SECONDS = 600.0
MESSAGE_TAIL = 300


class MeasurementError(Exception):
    """An engine failed; the message is one line that says how."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model in an engine's format, ready to be measured.

    Attributes:
        engine: one of `bench.catalog.ENGINES`.
        variant: the engine's name of the precision.
        bits: of its weights; see `bench.catalog.Variant`.
        model: one of `bench.catalog.MODELS`.
        path: file or folder.
    """

    engine: str
    variant: str
    bits: int
    model: str
    path: Path


def measure(entry: Entry, job_set: Set, threads: int, lock: Path | None) -> dict[str, Any]:
    """Measures one set.

    Returns:
        `values`, one for each repetition; `peak_bytes`, `weight_bytes`, `version` and what else the worker prints.
        A cold start has `still_cached`, the share of the model's files that could not be evicted.

    Raises:
        MeasurementError: the engine failed, or took too long.
    """
    rows = prompts(entry.model, job_set.batch * (1 + job_set.repetitions), job_set.prompt)
    job = Job(
        engine=ENGINES[entry.engine].module,
        path=str(entry.path),
        variant=entry.variant,
        kind=job_set.kind,
        threads=threads,
        batch=job_set.batch,
        ids=rows.ids,
        texts=rows.texts,
        count=job_set.count,
    )
    extra: dict[str, Any] = {}

    def prepare() -> None:
        if job_set.kind == "first_token":
            extra["still_cached"] = round(evict(entry.path), 4)

    try:
        output = quiet_output(
            [str(python_of(entry.engine)), "-m", "bench.engines.worker"],
            text=lambda now: json.dumps(dataclasses.asdict(dataclasses.replace(job, started=now))),
            lock=lock,
            prepare=prepare,
            timeout=TIMEOUT_SECONDS,
            cwd=ROOT,
            environment=_environment(threads),
        )
    except subprocess.CalledProcessError as error:
        raise MeasurementError(f"status {error.returncode}: {error.stderr.strip()[-MESSAGE_TAIL:]}") from error
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"no result after {TIMEOUT_SECONDS:.0f} s") from error
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise MeasurementError(f"it printed no result: {output.strip()[-MESSAGE_TAIL:]!r}")
    return {**json.loads(lines[-1]), **extra}


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
