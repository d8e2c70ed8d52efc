# SPDX-License-Identifier: Apache-2.0
"""Saved models in plain onnxruntime: a process that has neither this package nor its library."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.unit.runtime import tiny

PLAIN = """
import json, sys
import numpy as np
import onnxruntime as ort

folder, library, requests = *sys.argv[1:3], json.load(sys.stdin)
options = ort.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 1
if library:
    options.register_custom_ops_library(library)
sessions, answers = {}, []
for file, feeds in requests:
    if file not in sessions:
        sessions[file] = ort.InferenceSession(f"{folder}/{file}", options, providers=["CPUExecutionProvider"])
    feeds = {name: np.array(values, dtype) for name, (values, dtype) in feeds.items()}
    names = [output.name for output in sessions[file].get_outputs()]
    answers.append({n: a.tolist() for n, a in zip(names, sessions[file].run(None, feeds), strict=True)})
assert not [name for name in sys.modules if name.startswith(("poptransformer", "torch", "onnx_ir"))]
json.dump(answers, sys.stdout)
"""

Request = tuple[str, dict[str, Any]]


def ask(folder: object, *requests: Request, library: object = "") -> list[dict[str, Any]]:
    """Runs saved files in a process of their own, with or without the library; a feed is (values, dtype)."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), str(library)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ids(*rows: list[int]) -> dict[str, Any]:
    feeds = tiny.inputs(*rows)
    return {"input_ids": (feeds["input_ids"].tolist(), "int64")}


def lengths(*values: int) -> dict[str, Any]:
    return {"lengths": (values, "int64")}


SAMPLING = {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}
SEEDS = [3, 2**40, 7]
LENGTHS = [len(prompt) for prompt in tiny.PROMPTS]


@functools.cache
def answers(family: str) -> list[dict[str, Any]]:
    ragged = ids(*tiny.PROMPTS) | lengths(*LENGTHS)
    twelve = {"max_new_tokens": ([12], "int64")}
    floats = {name: ([value], "float32") for name, value in SAMPLING.items() if name != "top_k"}
    no_caches = {
        f"past_key_values.{layer}.{part}": (np.zeros((1, 2 if family == "llama" else 4, 5, 8)).tolist(), "float32")
        for layer in (0, 1)
        for part in ("key", "value")
    }
    first = tiny.PROMPTS[0]
    return ask(
        tiny.saved(family),
        ("generator.onnx", ids(first)),
        ("generator.onnx", ragged | twelve),
        ("generator.onnx", ragged | twelve | floats | {"top_k": ([9], "int64"), "seed": (SEEDS, "int64")}),
        ("generator.onnx", ragged | {"max_new_tokens": ([1, 7, 4], "int64"), "stop_token_ids": ([], "int64")}),
        ("generator.onnx", ragged | twelve | {"stop_token_ids": (all_ids(family), "int64")}),
        ("generator.onnx", ids([1] * 64, [2] * 64)),
        (
            "model.onnx",
            ids(first)
            | lengths(len(first))
            | {"past_lengths": ([0], "int64"), "logit_positions": ([[0, 1, 2, 3, 4]], "int64")}
            | no_caches,
        ),
    )


def all_ids(family: str) -> list[int]:
    """Ids of which each ends a row, so that every row ends with its second token at the latest."""
    return sorted({tiny.reference_ids(prompt, family=family)[1] for prompt in tiny.PROMPTS})


@pytest.fixture(params=["llama", "gpt2"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def rows(answer: dict[str, Any]) -> list[list[int]]:
    return [row[:count] for row, count in zip(answer["output_ids"], answer["output_lengths"], strict=True)]


def references(family: str, count: int = 12) -> list[list[int]]:
    return [tiny.reference_ids(prompt, count, family) for prompt in tiny.PROMPTS]


def test_ids_alone_are_enough(family: str) -> None:
    """The generation goes on to the end of text or to max_length."""
    first = tiny.PROMPTS[0]
    assert rows(answers(family)[0]) == [tiny.reference_ids(first, 64 - len(first), family)]


def test_rows_of_different_lengths(family: str) -> None:
    assert rows(answers(family)[1]) == references(family)


def test_sampling_equals_the_python_api(family: str) -> None:
    settings = {"max_new_tokens": 12, "seed": SEEDS, **SAMPLING}
    assert rows(answers(family)[2]) == tiny.engine(family).generate(tiny.PROMPTS, **settings)


def test_each_row_has_its_own_limit(family: str) -> None:
    expected = [row[:limit] for row, limit in zip(references(family), (1, 7, 4), strict=True)]
    assert rows(answers(family)[3]) == expected
    assert len(answers(family)[3]["output_ids"][0]) == 7


def test_stop_tokens_end_rows_and_fill_them_up(family: str) -> None:
    answer, stops = answers(family)[4], all_ids(family)
    expected = []
    for row in references(family):
        end = next(index for index, token in enumerate(row) if token in stops)
        expected.append(row[: end + 1])
    assert rows(answer) == expected
    for row, count in zip(answer["output_ids"], answer["output_lengths"], strict=True):
        assert set(row[count:]) <= {stops[0]}


def test_a_prompt_that_fills_max_length_gets_no_answer(family: str) -> None:
    assert answers(family)[5] == {"output_ids": [[], []], "output_lengths": [0, 0]}


def test_the_step_graph_gives_logits(family: str) -> None:
    logits = np.array(answers(family)[6]["logits"])
    np.testing.assert_allclose(logits, tiny.engine(family).logits(tiny.PROMPTS[0]), atol=1e-5, rtol=0)
