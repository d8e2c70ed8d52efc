# SPDX-License-Identifier: Apache-2.0
"""Smaller parts of the comparison: requirements, prompts, tokenizers, weight sizes, page cache, options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench import fake_tokenizer
from bench.catalog import PEERS, SMOLLM2
from bench.compare import parse
from bench.convert import package_digest
from bench.engines.graph_bytes import weight_bytes
from bench.models import prompts
from bench.page_cache import evict, resident_share
from bench.quiet import quiet_output
from bench.setup_peers import REQUIREMENTS, SECTIONS, sections


def test_every_peer_has_its_requirements() -> None:
    found = sections(REQUIREMENTS.read_text(encoding="utf-8"))
    assert found["torch"] == ["torch==2.13.0"]
    for peer in PEERS:
        assert all(found[name] for name in SECTIONS[peer])
        assert any(line.startswith(peer) for line in found[peer])


def test_sections() -> None:
    text = "# about\n# [one]\na==1\n# a note\n\nb\n# [two]\nc>=2,<3\n"
    assert sections(text) == {"one": ["a==1", "b"], "two": ["c>=2,<3"]}


def test_varints() -> None:
    # 300 is the example of the protocol buffers' documentation.
    assert fake_tokenizer._varint(300) == b"\xac\x02"
    assert fake_tokenizer._message(1, b"hi") == b"\x0a\x02hi"
    assert fake_tokenizer._number(3, 1) == b"\x18\x01"


def test_a_fake_tokenizer_is_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    fake_tokenizer.write_llama(tmp_path, 300)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.id_to_token(1) == "<s>"
    fake_tokenizer.widen(tmp_path, tmp_path, 310)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == 310


def test_prompts_of_a_random_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.models.MODELS_DIR", tmp_path)
    first = prompts("llama-1.1b", 3, 40)
    assert [len(row) for row in first.ids] == [40] * 3
    assert first.texts is None
    assert prompts("llama-1.1b", 3, 40) == first


def test_weights_that_only_lookups_read_do_not_count(tmp_path: Path) -> None:
    arrays = {
        "table": np.zeros((100, 8), np.float32),  # read by row
        "tied": np.zeros((50, 8), np.float32),  # by row, and transposed as the head
        "packed": np.zeros((4, 6), np.uint8),
        "angles": np.zeros((30, 8), np.float32),
    }
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["a"]),
        onnx.helper.make_node("Gather", ["tied", "ids"], ["b"]),
        onnx.helper.make_node("Transpose", ["tied"], ["tied_t"]),
        onnx.helper.make_node("MatMul", ["a", "tied_t"], ["c"]),
        onnx.helper.make_node("QuantizedLinear", ["b", "packed"], ["d"], domain="poptransformer"),
        onnx.helper.make_node("GroupQueryAttention", ["d", "angles"], ["e"], domain="com.microsoft"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "step", [], [], [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    )
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert weight_bytes(path) == 50 * 8 * 4 + 4 * 6


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("one", "folder/two", "empty"):
        (tmp_path / name).write_bytes(b"x" * (0 if name == "empty" else 1 << 20))
    assert resident_share(tmp_path) == 1.0
    assert evict(tmp_path) in (0.0, 1.0)  # a file system in memory has nowhere to put them
    assert (tmp_path / "one").read_bytes() == b"x" * (1 << 20)
    assert resident_share(tmp_path / "one") == 1.0


def test_a_measured_process(tmp_path: Path) -> None:
    calls: list[str] = []
    output = quiet_output(
        [sys.executable, "-c", "print(input())"],
        text=lambda now: f"since {now > 0}",
        lock=tmp_path / "lock",
        prepare=lambda: calls.append("prepare"),
    )
    assert output == "since True\n"
    assert calls == ["prepare"]
    with pytest.raises(subprocess.CalledProcessError):
        quiet_output([sys.executable, "-c", "raise SystemExit(3)"])


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(["--peers", "llama-cpp-python", "--models", SMOLLM2, "--sets", "decode", "cold"])
    assert (options.peers, options.models, options.sets) == (["llama-cpp-python"], [SMOLLM2], ["decode", "cold"])
    assert parse([]).peers == list(PEERS)
    assert parse(["--peers"]).peers == []
    with pytest.raises(SystemExit):
        parse(["--peers", "vllm"])
    assert "llama-cpp-python" in capsys.readouterr().err


def test_saved_models_follow_the_source() -> None:
    assert package_digest() == package_digest()
    assert len(package_digest()) == 12
