# SPDX-License-Identifier: Apache-2.0
"""`Session`: compile, run in one call, stream, and the figures of the last run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.sessions import Performance, Session
from tests.unit.runtime import tiny

ROWS = [list(prompt) for prompt in tiny.PROMPTS]
LOOP = 6  # the tiny model's max_loop


def session(**settings: Any) -> Session:
    return tiny.compiled_session(tiny.model(tiny.folder(tokenizer=True), **settings))


def ids(anchors: dict[str, np.ndarray]) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(anchors["output_ids"], anchors["output_lengths"], strict=True)]


def streamed(running: Session, rows: list[list[int]]) -> list[str]:
    return ["".join(pieces) for pieces in zip(*running.stream(tiny.inputs(*rows)), strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_of_any_size_give_the_same(batch_size: int) -> None:
    running = session(batch_size=batch_size, batch_per_step=3)
    expected = [tiny.reference_ids(row, LOOP) for row in ROWS]
    anchors = running.run(tiny.inputs(*ROWS))
    assert anchors is running.anchor_arrays
    assert ids(anchors) == expected
    assert anchors["output_ids"].dtype == anchors["output_lengths"].dtype == np.int64
    assert anchors["decode_step"] == LOOP
    texts = streamed(running, ROWS)
    assert texts == [tiny.byte_tokenizer().decode(row) for row in expected]
    assert ids(running.anchor_arrays) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"topk": 5, "seed": 3},
        {"topk": 0, "temperature": 1.3, "top_p": 0.9, "seed": 3},
        {"repetition_penalty": 1.5},
        {"early_stop": True},
        {"max_loop": None},
    ],
    ids=str,
)
def test_one_call_equals_steps(settings: dict[str, Any]) -> None:
    running = session(batch_size=3, **settings)
    answers = ids(running.run(tiny.inputs(*ROWS)))
    texts = streamed(running, ROWS)
    assert ids(running.anchor_arrays) == answers
    assert texts == running.model.build_output_dict(running.anchor_arrays)["output_strings"]
    assert len(answers[0]) == LOOP if "max_loop" not in settings else 32 - len(ROWS[0])


def test_stop_strings_end_an_answer_in_both() -> None:
    text = tiny.byte_tokenizer().decode(tiny.reference_ids(ROWS[0], LOOP))
    running = session(stop=[text[3:5]])
    output = running.model.build_output_dict(running.run(tiny.inputs(ROWS[0])))
    assert output["output_strings"] == [text[:3]]
    assert output["decode_step"] == 5
    assert streamed(running, [ROWS[0]]) == [text[:3]]


def test_beams_come_in_one_piece() -> None:
    running = session(num_beams=3, batch_size=3)
    expected = tiny.engine().generate(ROWS, max_new_tokens=LOOP, num_beams=3, ignore_eos=True)
    assert ids(running.run(tiny.inputs(*ROWS))) == expected
    texts = [tiny.byte_tokenizer().decode(row) for row in expected]
    assert list(running.stream(tiny.inputs(*ROWS))) == [texts]


def test_figures_count_what_was_really_generated() -> None:
    running = session(batch_size=2, batch_per_step=2)
    running.run(tiny.inputs(*ROWS))
    figures = running.performance()
    assert (figures.batch_size, figures.precision, figures.max_length) == (3, "fp32", 32)
    assert (figures.prompt_tokens, figures.new_tokens, figures.decode_step) == (17, 3 * LOOP, LOOP)
    assert figures.latency_per_token_ms == pytest.approx(figures.latency_ms / LOOP)
    assert figures.throughput == pytest.approx(1000 * 3 * LOOP / figures.latency_ms)
    list(running.stream(tiny.inputs(ROWS[1])))
    assert (running.performance().batch_size, running.performance().new_tokens) == (1, LOOP)


def test_a_prompt_that_fills_max_length_has_no_figures_to_divide_by() -> None:
    running = session()
    anchors = running.run(tiny.inputs([1] * 32))
    assert anchors["output_ids"].shape == (1, 0)
    assert running.performance().latency_per_token_ms > 0
    assert running.performance().throughput == 0
    assert Performance(1, "fp32", 8, 1, 0, 0, 0.0).throughput == 0
    assert running.model.build_output_dict(anchors)["output_strings"] == [""]


def test_nothing_works_before_its_time() -> None:
    empty = Session()
    run = functools.partial(empty.run, tiny.inputs([1]))
    for call in (lambda: empty.engine, lambda: empty.model, run, lambda: empty.save("x")):
        with pytest.raises(PopTransformerError, match=r"no model yet; call session\.compile"):
            call()
    with pytest.raises(PopTransformerError, match="Nothing has run yet"):
        session().performance()


def test_wrong_prompts_leave_the_last_result() -> None:
    running = session()
    before = running.run(tiny.inputs(ROWS[1]))
    with pytest.raises(ConfigError, match="33 tokens, but max_length is 32"):
        running.run(tiny.inputs([1] * 33))
    assert running.anchor_arrays is before


def test_a_session_saves_the_portable_model() -> None:
    import poptransformer

    engine = poptransformer.load(session().save(tiny.new_folder() / "model"))
    assert engine.generate(ROWS[0], max_new_tokens=LOOP) == tiny.reference_ids(ROWS[0], LOOP)


def test_a_session_fuses_unless_it_should_not() -> None:
    for fuse in (True, False):
        session = tiny.compiled_session(tiny.model(), fuse=fuse)
        fused = [node.op_type for node in session.engine.runtime.compiled.model.graph].count("FusedLinear")
        assert fused == (9 if fuse else 0)
        assert ids(session.run(tiny.inputs(tiny.PROMPTS[0]))) == [tiny.reference_ids(tiny.PROMPTS[0], 6)]


def test_a_session_compiles_models_in_turn() -> None:
    running = session()
    running.compile(tiny.model(precision="fp16"))
    assert running.engine.runtime.compiled.info.precision == "fp16"


def test_placement_must_add_up() -> None:
    for placement in ([1], [1, 2], [3, 0]):
        with pytest.raises(ConfigError, match=r"layer_per_ipu sums to \d, model has 2 layers; try \["):
            session(layer_per_ipu=placement)


def test_a_session_builds_from_no_saved_model() -> None:
    """Settings such as `session.fuse` cannot change what is built, so none is taken in silence."""
    with pytest.raises(PopTransformerError, match=r"is a saved model, .*; open it with poptransformer\.load\("):
        tiny.compiled_session(tiny.model(tiny.saved()), fuse=False)
