# SPDX-License-Identifier: Apache-2.0
"""One measurement of one engine in this process: reads a job from standard input, prints a JSON object.

Started by `bench.compare`: python -m bench.engines.worker <job.json
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from bench.engines.job import WARM_UP_TOKENS, Job
from bench.phases import memory


def main() -> None:
    job = Job(**json.load(sys.stdin))
    engine = importlib.import_module(f"bench.engines.{job.engine}").load(job)
    result = {"decode": decode, "prefill": prefill, "first_token": first_token}[job.kind](engine, job)
    result |= {"peak_bytes": memory()["peak_bytes"], "version": engine.version()}
    result["weight_bytes"] = engine.weight_bytes()  # after the peak was read: looking at the model takes memory
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # some engines hang or crash in their destructors; what was asked for is done


def first_token(engine: Any, job: Job) -> dict[str, Any]:
    """Seconds from the start of the process, Python and its imports included, to the first token."""
    ids, texts = job.prompts[0]
    engine.generate(ids, 1, texts)
    # CLOCK_MONOTONIC is the same for all processes, so this is the time since the parent started us.
    return {"values": [time.monotonic() - job.started]}


def decode(engine: Any, job: Job) -> dict[str, Any]:
    """Tokens per second of all rows together, from the first token to the last."""
    _, tokens = engine.generate(job.warm_up, WARM_UP_TOKENS)
    values, waits = [], []
    for ids, texts in job.prompts:
        watch = Watch()
        times, _ = engine.generate(ids, job.count, texts)
        waits.append(watch.wait_share())
        if len(times) != job.count:
            raise SystemExit(f"{job.engine} generated {len(times)} tokens in place of {job.count}")
        values.append(job.batch * (job.count - 1) / (times[-1] - times[0]))
    return {"values": values, "waits": waits, "tokens": tokens}


def prefill(engine: Any, job: Job) -> dict[str, Any]:
    """Prompt tokens per second, up to the first token of the answer."""
    engine.generate(job.warm_up, 1)
    values, waits = [], []
    for ids, texts in job.prompts:
        watch = Watch()
        begin = time.perf_counter()
        times, _ = engine.generate(ids, 1, texts)
        values.append(job.batch * job.length / (times[0] - begin))
        waits.append(watch.wait_share())
    return {"values": values, "waits": waits}


class Watch:
    """Sees whether others kept this process from its cores."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), _seconds_waiting()

    def wait_share(self) -> float:
        """Seconds that threads of this process were ready but had no core, per second since the watch was made."""
        begin, waited = self._begin
        return max(0.0, _seconds_waiting() - waited) / (time.perf_counter() - begin)


def _seconds_waiting() -> float:
    total = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
        except OSError:  # the thread has just ended, or the kernel does not count
            continue
    return total / 1e9


if __name__ == "__main__":
    main()
