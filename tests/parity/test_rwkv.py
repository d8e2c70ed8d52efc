# SPDX-License-Identifier: Apache-2.0
"""RWKV-4 against transformers where its size or its state matters: depth, length, pieces of rows, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import RwkvConfig, RwkvForCausalLM

import poptransformer
from poptransformer.build import Build, use_build
from poptransformer.engine import Engine
from poptransformer.errors import ConfigError
from poptransformer.models import RWKVDecodeModel
from poptransformer.runtime import SessionSettings
from poptransformer.sessions import Session
from poptransformer.state import SLOTS

ATOL = 1e-4
VOCABULARY = 97
IDS = np.random.default_rng(5).integers(1, VOCABULARY - 1, 520)
SHIPPED = Path(__file__).parents[2] / "examples" / "rwkv" / "tiny"
LENGTHS = np.array([520, 1, 300, 33])


def new_model(**overrides: Any) -> RwkvForCausalLM:
    """A model whose logits have a standard deviation of about 1, and whose channels forget at all kinds of speed."""
    settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 24, "context_length": 1024}
    model = RwkvForCausalLM(RwkvConfig(**{**settings, **overrides}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "time_mix" in name:
                parameter.uniform_(0, 1, generator=generator)
            elif "time_decay" in name:
                parameter.uniform_(-8, 2, generator=generator)
            else:
                parameter.normal_(0, 1 if name.endswith("embeddings.weight") else 0.2, generator=generator)
                parameter.add_(float("ln" in name and name.endswith("weight")))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, saved before transformers rescales its weights."""
    path = tmp_path_factory.mktemp("rwkv")
    new_model().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> RwkvForCausalLM:
    return RwkvForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def whole(reference: RwkvForCausalLM) -> np.ndarray:
    """PyTorch's logits `[L, V]` of all of `IDS` at once."""
    with torch.no_grad():
        logits = reference(torch.from_numpy(IDS)[None]).logits[0].numpy()
    assert logits.std() > 0.5
    return logits


@pytest.fixture(scope="module")
def one_by_one(reference: RwkvForCausalLM) -> np.ndarray:
    """The same `[L, V]` from transformers' own steps, one token each."""
    logits, state = [], None
    with torch.no_grad():
        for token in IDS:
            output = reference(torch.tensor([[token]]), state=state, use_cache=True)
            state = output.state
            logits.append(output.logits[0, 0].numpy())
    return np.stack(logits)


@pytest.fixture(scope="module")
def answers(reference: RwkvForCausalLM) -> list[list[int]]:
    """What transformers generates for the first tokens of `IDS`, as many as `LENGTHS` says."""
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    rows = [torch.from_numpy(IDS[None, :length]) for length in LENGTHS]
    found = [reference.generate(row, **settings)[0, row.shape[1] :].tolist() for row in rows]
    assert len({tuple(row) for row in found}) == len(rows)
    return found


@pytest.fixture(scope="module")
def built(folder: Path) -> Engine:
    return poptransformer.load(folder)


@pytest.fixture(scope="module", params=["kernels", "bodies", "saved", "unfused"])
def engine(request: pytest.FixtureRequest, built: Engine, folder: Path, tmp_path_factory: Any) -> Engine:
    if request.param == "bodies":
        return Engine(built.runtime.compiled, built.checkpoint, SessionSettings(use_native=False))
    if request.param == "saved":
        return poptransformer.load(built.save(tmp_path_factory.mktemp("saved") / "model"))
    return poptransformer.load(folder, fuse=False) if request.param == "unfused" else built


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)


def step(runner: Any, ids: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """Logits `[B, L, V]` of one step."""
    batch, count = ids.shape
    lengths = np.full(batch, count) if lengths is None else lengths
    return runner.forward(ids, lengths, np.tile(np.arange(count), (batch, 1))).numpy()


def test_a_long_prompt_at_once(engine: Engine, whole: np.ndarray) -> None:
    close(engine.logits(IDS)[0], whole)


def test_token_by_token(engine: Engine, whole: np.ndarray, one_by_one: np.ndarray) -> None:
    runner = engine.runtime.start(1, 1)
    found = np.concatenate([step(runner, token[None, None])[0] for token in IDS])
    close(found, whole)
    close(found, one_by_one)


def test_rows_of_different_lengths(engine: Engine, whole: np.ndarray) -> None:
    logits = engine.logits(np.tile(IDS, (len(LENGTHS), 1)), LENGTHS)
    for row, length in zip(logits, LENGTHS, strict=True):
        close(row[:length], whole[:length])


def test_rows_in_pieces_of_any_length(engine: Engine, whole: np.ndarray) -> None:
    """Some rows rest in some steps; a row goes on where it stood, whatever lies behind its tokens."""
    pieces = np.array([[7, 1, 0, 3], [0, 1, 5, 1], [1, 1, 1, 1], [4, 0, 1, 0], [30, 2, 17, 1]])
    runner, done = engine.runtime.start(4, 1), np.zeros(4, np.int64)
    for lengths in pieces:
        ids = np.random.default_rng(0).integers(1, VOCABULARY, (4, lengths.max()))
        for row, start, length in zip(ids, done, lengths, strict=True):
            row[:length] = IDS[start : start + length]
        for row, start, length in zip(step(runner, ids, lengths), done, lengths, strict=True):
            close(row[:length], whole[start : start + length])
        done += lengths
    assert runner.past_lengths.tolist() == done.tolist()


def test_all_ways_to_generate(engine: Engine, answers: list[list[int]]) -> None:
    rows = [IDS[:length].tolist() for length in LENGTHS]
    settings = {"max_new_tokens": 24, "ignore_eos": True}
    assert engine.generate(rows, **settings) == answers
    assert [list(row) for row in zip(*engine.stream(rows, **settings), strict=True)] == answers
    assert engine.runtime.generate(rows, engine.params(rows, **settings), engine.stop_token_ids) == answers


def test_memory_is_the_same_for_every_length(engine: Engine) -> None:
    states = engine.runtime.compiled.info.states
    assert len(states) == 5 * 24
    assert all(SLOTS not in state.shape for state in states)
    sizes = [sum(value.numpy().nbytes for value in engine.runtime.start(2, slots)._pasts) for slots in (1, 10**9)]
    assert sizes == [2 * 24 * 5 * 32 * 4] * 2


def test_a_row_may_be_longer_than_the_training_context(folder: Path) -> None:
    assert poptransformer.load(folder).runtime.max_length == 1024
    engine = poptransformer.load(folder, max_length=10**7)
    assert len(engine.generate(IDS[:3].tolist(), max_new_tokens=1500, ignore_eos=True)) == 1500


def test_weights_are_those_of_the_checkpoint(folder: Path) -> None:
    """However many halvings lie before a layer; where transformers divides, the epsilon grows here."""
    graph = poptransformer.load(folder, fuse=False).runtime.compiled.model.graph
    tensors = load_file(folder / "model.safetensors")
    for name, array in tensors.items():
        found = graph.initializers.get(name)
        if name.endswith("time_decay"):
            assert found is None
            found, array = graph.initializers[name.replace("time_decay", "decay")], -torch.exp(array)
        np.testing.assert_allclose(found.const_value.numpy(), array.numpy(), rtol=1e-6)
    norms = [node.attributes["epsilon"].as_float() for node in graph if node.op_type == "LayerNormalization"]
    expected = [1e-5, *(1e-5 * 4.0 ** (i // 6) for i in range(24) for _ in (1, 2)), 1e-5 * 4.0**4]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [20, 48])
def test_attention_of_another_width(size: int, tmp_path: Path) -> None:
    """transformers has no state for it, so whole prompts are compared, and steps with them."""
    model = new_model(num_hidden_layers=3, attention_hidden_size=size)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS[:60])[None], use_cache=False).logits[0].numpy()
    engine = poptransformer.load(tmp_path)
    close(engine.logits(IDS[:60])[0], expected)
    runner = engine.runtime.start(1, 1)
    close(np.concatenate([step(runner, IDS[None, :50]), step(runner, IDS[None, 50:60])], 1)[0], expected)


def test_a_cache_of_8_bits_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="fp8_cache is true, but RWKVDecodeModel keeps no keys and values"):
        poptransformer.load(folder, fp8_cache=True)


def session_ids(folder: Path, cache: Path, profile: Path) -> list[int]:
    with use_build(Build()):
        model = RWKVDecodeModel(hf_model_name=str(folder), max_loop=5)
        session = Session(execution_cache_name=str(cache), profile_name=str(profile))
        session.compile(model)
    inputs = {"input_ids": IDS[None, :9], "lengths": np.array([9])}
    return session.run(inputs)["output_ids"][0].tolist()


def test_compiled_models_and_profiles(folder: Path, built: Engine, tmp_path: Path) -> None:
    expected = built.generate(IDS[:9].tolist(), max_new_tokens=5, ignore_eos=True)
    assert session_ids(folder, tmp_path / "cache", tmp_path / "first") == expected
    (entry,) = (tmp_path / "cache").iterdir()
    written = entry.stat().st_mtime_ns
    assert session_ids(folder, tmp_path / "cache", tmp_path / "second") == expected
    assert entry.stat().st_mtime_ns == written
    table = (tmp_path / "second" / "layers.txt").read_text()
    assert "rwkv/blocks.23/attention/output" in table
    assert "rwkv/blocks.23/attention " in table  # the recurrence's own row


def test_the_shipped_model() -> None:
    """It agrees with PyTorch, and likes English that it has not seen."""
    reference = RwkvForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    assert sum(parameter.numel() for parameter in reference.parameters()) * 2 < 4 << 20
    engine = poptransformer.load(SHIPPED)
    ids = np.array(engine.tokenizer.encode("She was very glad to see him, and they walked into the garden together."))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)[None]).logits[0]
    close(engine.logits(ids)[0], expected.numpy())
    assert torch.nn.functional.cross_entropy(expected[:-1], torch.from_numpy(ids[1:])) < 4.0
    prompt = torch.from_numpy(ids[None, :6])
    answer = reference.generate(prompt, max_new_tokens=40, do_sample=False)[0, 6:].tolist()
    assert engine.generate(ids[:6].tolist(), max_new_tokens=40) == answer
