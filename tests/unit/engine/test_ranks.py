# SPDX-License-Identifier: Apache-2.0
"""Engines of several ranks in one process: what a failing rank, a damaged share and a missing library lead to."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poptransformer
from poptransformer import native
from poptransformer.engine import Engine
from poptransformer.errors import PopTransformerError
from poptransformer.runtime import SessionSettings
from poptransformer.runtime.artefact import load_artefact
from poptransformer.runtime.distribution import Distribution
from poptransformer.runtime.token_runner import TokenRunner

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[3] / "examples" / "gpt2" / "tiny"
IDS = [5, 17, 99, 4]


@pytest.fixture(scope="module")
def compiled() -> tuple[Any, Any]:
    engine = poptransformer.load(FOLDER, model_type="tp", num_replicas=2)
    return engine.runtime.compiled, engine.checkpoint


def two_ranks(compiled: tuple[Any, Any], timeout: float = 20.0) -> Engine:
    return Engine(*compiled, SessionSettings(threads=2), Distribution(timeout))


@pytest.fixture
def saved(compiled: tuple[Any, Any], tmp_path: Path) -> Path:
    return two_ranks(compiled).save(tmp_path / "model")


def on_rank_1(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Lets rank 1 do something else at its fourth token."""
    decode, steps = TokenRunner.decode, {}

    def acting(self: TokenRunner) -> np.ndarray:
        steps[self] = steps.get(self, 0) + 1
        if steps[self] == 4 and threading.current_thread().name == "rank 1":
            act(self)
        return decode(self)

    monkeypatch.setattr(TokenRunner, "decode", acting)


def test_an_error_in_a_kernel_names_rank_layer_and_op(
    compiled: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(runner: TokenRunner) -> None:
        history = np.full_like(runner._rows.history, 10**6)  # no such token
        runner._bind({"history": history})

    engine = two_ranks(compiled)
    on_rank_1(monkeypatch, spoil)
    start = time.monotonic()
    with pytest.raises(PopTransformerError, match=r"rank 1 failed: .*Name:'sample/SampleToken'.*history.*1000000"):
        engine.generate(IDS, max_new_tokens=12)
    assert time.monotonic() - start < 10, "rank 0 did not wait for its timeout"


def test_a_rank_that_hangs_is_named_within_the_timeout(
    compiled: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = threading.Event()
    engine = two_ranks(compiled, timeout=0.5)
    on_rank_1(monkeypatch, lambda runner: forever.wait(30))
    start = time.monotonic()
    with pytest.raises(PopTransformerError, match=r"rank 0 waited 0.5 s in \S+/AllReduce for rank 1, .* last in"):
        engine.generate(IDS, max_new_tokens=12)
    assert time.monotonic() - start < 10
    with pytest.raises(PopTransformerError, match="The model cannot go on after that: load it again"):
        engine.generate(IDS, max_new_tokens=12)
    forever.set()


def test_another_engine_goes_on(compiled: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(runner: TokenRunner) -> None:
        raise RuntimeError("no")

    broken, sound = two_ranks(compiled), two_ranks(compiled)
    expected = sound.generate(IDS, max_new_tokens=12)
    with monkeypatch.context() as patch:
        on_rank_1(patch, fail)
        with pytest.raises(PopTransformerError, match="rank 1 failed: no"):
            broken.generate(IDS, max_new_tokens=12)
    assert sound.generate(IDS, max_new_tokens=12) == expected


def test_threads_end_with_their_engine(compiled: tuple[Any, Any]) -> None:
    engine = two_ranks(compiled)
    engine.generate(IDS, max_new_tokens=2)
    before = threading.active_count()
    del engine
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before - 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before - 2


@pytest.mark.parametrize("damage", ["cut", "hole", "gone"])
def test_a_partly_written_share_is_found(saved: Path, damage: str) -> None:
    share = saved / "replica-1" / "weights.bin"
    size = share.stat().st_size
    if damage == "gone":
        share.unlink()
    else:
        with share.open("r+b") as file:
            file.seek(size // 2)
            if damage == "hole":
                file.write(bytes(size - size // 2))
            else:
                file.truncate()
    problem = {
        "cut": rf"replica-1/weights.bin has {size // 2} bytes, expected {size} bytes: the saved model is incomplete",
        "hole": r"replica-1/weights.bin is not what was saved: was it only partly written\?",
        "gone": r"replica-1/weights.bin is missing",
    }[damage]
    with pytest.raises(PopTransformerError, match=problem):
        poptransformer.load(saved)
    assert load_artefact(saved, replica=0).replica == 0, "a rank reads its own share only"


def test_all_shares_of_a_model_are_needed_in_one_process(saved: Path) -> None:
    one = load_artefact(saved, replica=1)
    with pytest.raises(PopTransformerError, match="has the weights of 1 of 2 replicas"):
        Engine(one, None, SessionSettings())  # type: ignore[arg-type]


def test_a_saved_model_of_two_replicas(compiled: tuple[Any, Any], saved: Path) -> None:
    engine, loaded = two_ranks(compiled), poptransformer.load(saved)
    np.testing.assert_array_equal(loaded.logits(IDS), engine.logits(IDS))
    assert loaded.generate(IDS, max_new_tokens=20) == engine.generate(IDS, max_new_tokens=20)
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*.bin")}
    assert files == {"replica-0/weights.bin", "replica-1/weights.bin"}


def test_without_the_library(compiled: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    with pytest.raises(PopTransformerError, match="A model of several replicas or stages needs the native library"):
        two_ranks(compiled).generate(IDS, max_new_tokens=2)


def test_a_copy_elsewhere_is_the_same_model(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    assert poptransformer.load(copy).generate(IDS, max_new_tokens=8) == poptransformer.load(saved).generate(
        IDS, max_new_tokens=8
    )
