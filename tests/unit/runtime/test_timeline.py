# SPDX-License-Identifier: Apache-2.0
"""Pipeline stages at work: in turn, or at the same time on different rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poptransformer.build import Build, use_build
from poptransformer.checkpoint import random_checkpoint
from poptransformer.errors import ConfigError
from poptransformer.models import model_class_for
from poptransformer.runtime.timeline import Event, overlap
from poptransformer.sessions import Session

pytestmark = pytest.mark.unit

CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 512,
    "n_embd": 384,
    "n_layer": 8,
    "n_head": 6,
    "n_positions": 160,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ROWS, LENGTH, TOKENS = 4, 96, 4


def events(tmp_path: Path, enable_pipeline: bool) -> list[Event]:
    """Runs `ROWS` batches of one row on two stages."""
    build = Build(batch_size=1, batch_per_step=ROWS, enable_pipeline=enable_pipeline)
    with use_build(build):
        checkpoint = random_checkpoint(CONFIG)
        model = model_class_for(checkpoint.config).from_checkpoint(checkpoint, layer_per_ipu=[4, 4], max_loop=TOKENS)
    session = Session(threads=2, profile_name=str(tmp_path))
    session.compile(model)
    prompts = [[(7 * row + i) % 512 for i in range(LENGTH)] for row in range(ROWS)]
    answers = session.run(model.pad(prompts))
    assert answers["output_lengths"].tolist() == [TOKENS] * ROWS
    return session.engine.runtime.timeline


def test_stages_in_turn(tmp_path: Path) -> None:
    found = events(tmp_path, enable_pipeline=False)
    assert {event.micro_batch for event in found} == {0}
    assert overlap(found) < 0.02


def test_stages_overlap(tmp_path: Path) -> None:
    found = events(tmp_path, enable_pipeline=True)
    assert {event.micro_batch for event in found} == set(range(ROWS))
    prefill = sorted(found, key=lambda event: event.start)[: 3 * ROWS]  # embedding and blocks, blocks, tied head
    assert overlap(prefill) > 0.3
    written = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert {(row["pid"], row["name"]) for row in written} == {
        (stage, f"micro-batch {number}") for stage in (0, 1) for number in range(ROWS)
    }


def test_overlap_counts_time_in_which_two_stages_work() -> None:
    def event(stage: int, start: float, end: float) -> Event:
        return Event(stage, stage, stage, 0, start, end)

    assert overlap([event(0, 0, 2), event(1, 2, 4)]) == 0
    assert overlap([event(0, 0, 2), event(1, 1, 4)]) == 0.25
    assert overlap([event(0, 0, 2), event(0, 1, 2)]) == 0, "replicas of one stage are no overlap"


def test_a_pipeline_needs_stages() -> None:
    with use_build(Build(enable_pipeline=True)):
        checkpoint = random_checkpoint(CONFIG)
        model = model_class_for(checkpoint.config).from_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match="enable_pipeline is true, but the model has one stage"):
        Session().compile(model)
