# SPDX-License-Identifier: Apache-2.0
"""Several engines in one process, and several threads on one engine."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.engine import Engine
from poptransformer.runtime import SessionSettings
from tests.unit.runtime import tiny

FAMILIES = ("llama", "gpt2")


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Results of jobs that start together, each in a thread of its own."""
    barrier = threading.Barrier(len(jobs))

    def start(job: Callable[[], Any]) -> Any:
        barrier.wait(timeout=60)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(start, job) for job in jobs]]


def references(family: str, count: int = 12) -> list[list[int]]:
    return [tiny.reference_ids(prompt, count, family) for prompt in tiny.PROMPTS]


def one_call(engine: Engine) -> list[list[int]]:
    params = engine.params(tiny.PROMPTS, max_new_tokens=12)
    return engine.runtime.generate(tiny.PROMPTS, params, engine.stop_token_ids)


def test_two_engines_take_turns_token_by_token() -> None:
    streams = [tiny.engine(family).stream(tiny.PROMPTS[0], max_new_tokens=8) for family in FAMILIES]
    steps = list(zip(*streams, strict=True))
    for number, family in enumerate(FAMILIES):
        found = [step[number][0] for step in steps]
        assert found == tiny.reference_ids(tiny.PROMPTS[0], 8, family)


def test_two_models_are_built_in_turns() -> None:
    """What is being built is known per block and thread, not per process."""
    with use_build(Build(precision="fp16")), use_build(Build(precision="bf16")):
        inner = tiny.model(precision="fp32")
    inner.build_graph()
    assert inner.build.precision == "fp32"


def test_two_engines_in_two_threads() -> None:
    """From the checkpoint on: both are loaded, compiled and run at the same time."""

    def work(family: str) -> list[Any]:
        engine = poptransformer.load(tiny.folder(family))
        return [engine.generate(tiny.PROMPTS, max_new_tokens=12) for _ in range(3)] + [one_call(engine)]

    for family, found in zip(FAMILIES, at_once(*(functools.partial(work, family) for family in FAMILIES)), strict=True):
        assert found == [references(family)] * 4


@pytest.mark.parametrize("use_native", [True, False])
def test_one_engine_in_many_threads(use_native: bool) -> None:
    """The sessions are made by whoever comes first, while others save the model or wait for them."""
    loaded = poptransformer.load(tiny.folder())
    for _ in range(2):
        engine = Engine(loaded.runtime.compiled, loaded.checkpoint, SessionSettings(use_native=use_native))
        steps = functools.partial(engine.generate, max_new_tokens=12)
        folder = tiny.new_folder() / "model"
        jobs = [functools.partial(one_call, engine), functools.partial(engine.save, folder)]
        jobs += [functools.partial(steps, rows) for rows in (tiny.PROMPTS, *([prompt] for prompt in tiny.PROMPTS))]
        found = at_once(*jobs)
        assert found[0] == found[2] == references("llama")
        assert found[3:] == [[reference] for reference in references("llama")]
        assert poptransformer.load(folder).generate(tiny.PROMPTS, max_new_tokens=12) == references("llama")


def test_numbers_of_threads_do_not_matter() -> None:
    engines = [poptransformer.load(tiny.folder(), threads=count) for count in (1, 2, 3)]
    logits = [engine.logits(tiny.PROMPTS[2]) for engine in (*engines, *reversed(engines))]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5, rtol=0)


def test_sessions_share_one_copy_of_the_weights() -> None:
    engine = poptransformer.load(tiny.folder())
    engine.generate([1], max_new_tokens=1)
    one_call(engine)
    held: Sequence[str] = list(engine.runtime._weights._held)
    names = [name for name in engine.runtime.compiled.model.graph.initializers if name.endswith("proj.weight")]
    assert sorted(set(names) & set(held)) == sorted(names)
    assert engine.runtime.step_session.weight_store is engine.runtime.generator_session.weight_store
