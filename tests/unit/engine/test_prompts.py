# SPDX-License-Identifier: Apache-2.0
"""What an engine takes and gives back: text for text, ids for ids, one for one and lists for lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import poptransformer
from poptransformer.checkpoint import TokenizerError
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError, PopTransformerError
from tests.unit.runtime import tiny

TEXTS = ["Hello", "T", "Once upon a"]
IDS = [list(prompt) for prompt in tiny.PROMPTS]
COUNT = 12
TINY_GPT2 = Path(__file__).parents[3] / "examples" / "gpt2" / "tiny"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny.engine(tokenizer=True)


def expected_text(text: str, count: int = COUNT) -> str:
    """transformers' greedy text."""
    ids = tiny.reference_ids(list(text.encode()), count)
    return tiny.byte_tokenizer().decode(ids, skip_special_tokens=True)


def expected_ids(ids: list[int], count: int = COUNT) -> list[int]:
    return tiny.reference_ids(ids, count)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_a_text(engine: Engine) -> None:
    assert engine.generate(TEXTS[0], max_new_tokens=COUNT) == expected_text(TEXTS[0])


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_list_of_texts(engine: Engine, kind: Any) -> None:
    assert engine.generate(kind(TEXTS), max_new_tokens=COUNT) == [expected_text(text) for text in TEXTS]
    assert engine.generate(kind(TEXTS[:1]), max_new_tokens=COUNT) == [expected_text(TEXTS[0])]


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: np.array(ids, np.int32), torch.tensor])
def test_one_row_of_ids(engine: Engine, kind: Any) -> None:
    found = engine.generate(kind(IDS[0]), max_new_tokens=COUNT)
    assert found == expected_ids(IDS[0])
    assert all(type(token) is int for token in found)


@pytest.mark.parametrize(
    "kind", [list, tuple, lambda rows: [np.array(row) for row in rows], lambda rows: map(iter, rows)]
)
def test_rows_of_ids(engine: Engine, kind: Any) -> None:
    assert engine.generate(kind(IDS), max_new_tokens=COUNT) == [expected_ids(row) for row in IDS]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_an_array_of_ids(engine: Engine, kind: Any) -> None:
    ids = kind([IDS[0], IDS[2][:5]])
    assert engine.generate(ids, max_new_tokens=4) == [expected_ids(row, 4) for row in ids.tolist()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ids_do_without_a_tokenizer(family: str) -> None:
    found = tiny.engine(family).generate(IDS, max_new_tokens=COUNT)
    assert found == [tiny.reference_ids(row, COUNT, family) for row in IDS]


def test_text_does_not() -> None:
    engine = tiny.engine()
    messages = [{"role": "user", "content": "hi"}]
    for call in (lambda: engine.generate("a"), lambda: engine.stream(["a"]), lambda: engine.chat(messages)):
        with pytest.raises(TokenizerError, match="has no tokenizer; pass token ids instead of text"):
            call()


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ([], "The list of prompts is empty"),
        ((), "The list of prompts is empty"),
        (np.zeros((0, 4), int), "The list of prompts is empty"),
        ("", "Prompt 0 is empty"),
        (["a", ""], "Prompt 1 is empty"),
        ([[1], []], "Prompt 1 is empty"),
        (["a", [1, 2]], "prompts must be a text, a list of texts"),
        ([1, [2]], "prompts must be a text"),
        ([1.5, 2], "prompts must be a text"),
        ([[1, 2.5]], "prompts must be a text"),
        ([["a"]], "prompts must be a text"),
        (None, "prompts must be a text.*found None"),
        (7, "prompts must be a text.*found 7"),
        ([tiny.VOCABULARY], "Prompt 0 has token id 260, but the model's ids go from 0 to 259"),
        ([[1], [2, -3]], "Prompt 1 has token id -3"),
        ([1] * 65, "Prompt 0 has 65 tokens, but max_length is 64 .* Shorten the prompt"),
        ("a" * 65, "Prompt 0 has 65 tokens"),
    ],
)
def test_wrong_prompts(engine: Engine, prompts: Any, problem: str) -> None:
    for call in (engine.generate, engine.stream):
        with pytest.raises(ConfigError, match=problem):
            call(prompts, max_new_tokens=3)


def test_the_answer_goes_on_to_max_length(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    assert engine.generate(IDS, ignore_eos=True) == [expected_ids_without_end(row) for row in IDS]
    assert not caplog.records
    assert engine.generate([7] * 64) == []
    assert engine.generate([[7] * 64, IDS[0]], max_new_tokens=3) == [[], expected_ids(IDS[0], 3)]
    assert "a prompt of 64 tokens leaves 0 of the 3 new tokens asked for: max_length is 64" in caplog.messages


def expected_ids_without_end(row: list[int]) -> list[int]:
    output = tiny.torch_model().generate(
        torch.tensor([row]),
        attention_mask=torch.ones(1, len(row), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=64 - len(row),
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(row) :].tolist()


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_streamed_text_comes_in_pieces(engine: Engine) -> None:
    pieces = list(engine.stream(TEXTS[0], max_new_tokens=COUNT))
    assert len(pieces) > 5
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert "".join(pieces) == expected_text(TEXTS[0])


def test_streamed_texts_come_side_by_side(engine: Engine) -> None:
    limits = [3, COUNT, 5]
    steps = list(engine.stream(TEXTS, max_new_tokens=limits))
    assert len(steps) == COUNT
    assert [sum(piece is not None for piece in column) for column in zip(*steps, strict=True)] == limits
    found = ["".join(piece or "" for piece in column) for column in zip(*steps, strict=True)]
    assert found == [expected_text(text, limit) for text, limit in zip(TEXTS, limits, strict=True)]


def test_streamed_ids(engine: Engine) -> None:
    steps = list(engine.stream(IDS, max_new_tokens=[2, 4, 3]))
    references = [expected_ids(row, limit) for row, limit in zip(IDS, (2, 4, 3), strict=True)]
    padded = [[*row, *[None] * (4 - len(row))] for row in references]
    assert steps == [list(step) for step in zip(*padded, strict=True)]
    assert list(engine.stream(IDS[0], max_new_tokens=4)) == [[token] for token in expected_ids(IDS[0], 4)]


def test_a_stream_can_be_left(engine: Engine) -> None:
    stream = engine.stream(IDS[0], max_new_tokens=40)
    next(stream)
    del stream
    assert engine.generate(IDS[0], max_new_tokens=3) == expected_ids(IDS[0], 3)


def test_mistakes_are_told_before_the_first_piece(engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for call in (
        lambda: engine.stream("a", num_beams=2),
        lambda: engine.stream(["a"], num_beams=2),
        lambda: engine.stream([1], num_beams=2),
        lambda: engine.chat(messages, stream=True, num_beams=2),
    ):
        with pytest.raises(ConfigError, match="num_beams is above 1.*generate without streaming"):
            call()
    with pytest.raises(ConfigError, match="Unknown generation setting 'temprature'. Nearest: temperature"):
        engine.stream("a", temprature=2)


# -- chat -------------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]


def test_chat_uses_the_template(engine: Engine) -> None:
    rendered = tiny.byte_tokenizer().apply_chat_template(MESSAGES, add_generation_prompt=True)
    ids = rendered["input_ids"] if isinstance(rendered, dict) or hasattr(rendered, "keys") else rendered
    assert ids[0] == 258  # the role is one token, not its letters
    expected = tiny.byte_tokenizer().decode(expected_ids(list(ids)), skip_special_tokens=True)
    assert engine.chat(MESSAGES, max_new_tokens=COUNT) == expected
    assert "".join(engine.chat(MESSAGES, max_new_tokens=COUNT, stream=True)) == expected


def test_chat_samples_like_generate(engine: Engine) -> None:
    settings = {"max_new_tokens": 8, "temperature": 1.5, "seed": 4}
    assert engine.chat(MESSAGES, **settings) == engine.chat(MESSAGES, **settings)
    assert engine.chat(MESSAGES, **settings) != engine.chat(MESSAGES, **settings | {"seed": 5})


def test_chat_without_a_template() -> None:
    folder = tiny.new_folder("plain")
    for file in tiny.folder(tokenizer=True).iterdir():
        if "template" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    tiny.edit_json(folder / "tokenizer_config.json", chat_template=None)
    engine = poptransformer.load(folder)
    assert engine.generate("Hello", max_new_tokens=3) == expected_text("Hello", 3)
    with pytest.raises(PopTransformerError, match="chat template"):
        engine.chat(MESSAGES)


def test_a_text_that_is_not_unicode() -> None:
    with pytest.raises(TokenizerError, match="bytes that are not UTF-8"):
        poptransformer.load(TINY_GPT2).generate("\udcff", max_new_tokens=1)


def test_stop_strings_end_ids_too() -> None:
    engine = poptransformer.load(TINY_GPT2)
    prompt = engine.tokenizer.encode("She looked at him")
    whole = engine.generate(prompt, max_new_tokens=30)
    stopped = engine.generate([prompt, prompt], max_new_tokens=30, stop=["said"])
    assert stopped[0] == stopped[1] == whole[: len(stopped[0])]
    assert "said" in engine.tokenizer.decode(stopped[0])
    assert len(stopped[0]) < 30
    streamed = list(engine.stream(prompt, max_new_tokens=30, stop=["said"]))
    assert [ids[0] for ids in streamed] == stopped[0]


def test_a_checkpoint_of_another_family() -> None:
    from poptransformer.build import Build, use_build
    from poptransformer.models import LLAMA2DecModel

    with use_build(Build()):
        model = LLAMA2DecModel(hf_model_name=str(TINY_GPT2))
    with pytest.raises(ConfigError, match="is of model_type gpt2, but LLAMA2DecModel builds llama"):
        model.build_graph()
