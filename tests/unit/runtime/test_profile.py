# SPDX-License-Identifier: Apache-2.0
"""Profiles: onnxruntime's own files, and the table of layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from poptransformer import native
from poptransformer.errors import PopTransformerError
from poptransformer.runtime.profile import LayerCost, format_table, layer_of, weight_bytes, write_profile
from poptransformer.sessions import Session
from tests.unit.runtime import tiny


def profiled(folder: Path) -> Session:
    return tiny.compiled_session(tiny.model(tiny.folder(tokenizer=True)), profile_name=str(folder))


def table(folder: Path) -> dict[str, list[str]]:
    """Columns by layer."""
    lines = (folder / "layers.txt").read_text().splitlines()
    assert lines[0].split() == ["layer", "calls", "ms", "share", "weight", "MB"]
    return {line[:60].strip(): line[60:].split() for line in lines[1:]}


def test_the_table_has_time_and_bytes_of_each_layer() -> None:
    folder = tiny.new_folder() / "deep" / "profile"
    session = profiled(folder)
    session.run(tiny.inputs(tiny.PROMPTS[0]))
    rows = table(folder)
    assert {f"model/layers.{i}/self_attn" for i in (0, 1)} | {"model/norm", "model/embed_tokens"} <= set(rows)
    total = float(rows.pop("total")[1])
    assert sum(float(columns[1]) for columns in rows.values()) == pytest.approx(total, abs=0.01 * len(rows))
    steps = len(session.anchor_arrays["output_ids"][0])
    assert int(rows["model/embed_tokens"][0]) == steps
    if native.available():
        head = tiny.torch_model().lm_head.weight
        assert int(rows["lm_head"][0]) == steps
        assert float(rows["lm_head"][3]) == pytest.approx(4 * head.numel() / 1e6, abs=0.005)
        assert "model/layers.1/mlp/down_proj" in rows
    (file,) = folder.glob("onnxruntime_*.json")
    assert any(event.get("cat") == "Node" for event in json.loads(file.read_text()))


def test_a_fused_node_counts_for_each_of_its_layers() -> None:
    """Its time is divided among them by the weights they read."""
    folder = tiny.new_folder()
    profiled(folder).run(tiny.inputs(tiny.PROMPTS[0]))
    rows = table(folder)
    block = "model/layers.0"
    names = [f"{block}/self_attn/{name}_proj" for name in "qkvo"] + [f"{block}/mlp/{n}_proj" for n in ("gate", "up")]
    assert {*names, f"{block}/input_layernorm", f"{block}/post_attention_layernorm", block} <= set(rows)
    if native.available():
        q, k = (float(rows[f"{block}/self_attn/{name}_proj"][3]) for name in "qk")
        assert (q, k) == (pytest.approx(4 * 32 * 32 / 1e6, abs=0.005), pytest.approx(4 * 32 * 16 / 1e6, abs=0.005))


def test_weights_of_a_fused_node() -> None:
    nodes = {str(node.name): weight_bytes(node) for node in tiny.engine().runtime.compiled.model.graph}
    block = "model/layers.1"
    assert nodes[f"{block}/mlp/FusedLinear"] == {
        f"{block}/post_attention_layernorm": 4 * 32,
        f"{block}/mlp/gate_proj": 4 * 32 * 48,
        f"{block}/mlp/up_proj": 4 * 32 * 48,
        f"{block}/mlp": 0,
    }
    assert nodes[f"{block}/mlp/down_proj/FusedLinear"] == {f"{block}/mlp/down_proj": 4 * 32 * 48, block: 0}
    assert nodes["model/embed_tokens/Gather"] == {"model/embed_tokens": 4 * 32 * tiny.VOCABULARY}


def test_later_runs_keep_the_profile_of_the_first() -> None:
    """onnxruntime records a session once; a second run must neither fail nor empty the table."""
    folder = tiny.new_folder()
    session = profiled(folder)
    first = session.run(tiny.inputs(tiny.PROMPTS[0]))
    before = (folder / "layers.txt").read_text()
    assert np.array_equal(session.run(tiny.inputs(tiny.PROMPTS[0]))["output_ids"], first["output_ids"])
    assert (folder / "layers.txt").read_text() == before


def test_streams_are_profiled() -> None:
    folder = tiny.new_folder()
    session = profiled(folder)
    list(session.stream(tiny.inputs(tiny.PROMPTS[1])))
    assert "model/layers.0/self_attn" in table(folder)
    list(session.stream(tiny.inputs(tiny.PROMPTS[1])))
    engine = session.engine  # the one-call graph has a profile of its own
    params = engine.params([tiny.PROMPTS[1]], max_new_tokens=3)
    engine.runtime.generate([tiny.PROMPTS[1]], params, engine.stop_token_ids)
    write_profile(engine.runtime, folder)
    assert "prepare" in table(folder)
    assert len(list(folder.glob("onnxruntime_*.json"))) == 2


def test_a_cached_model_is_profiled_by_layer() -> None:
    """Its files have chains, in which layers are not told apart."""
    cache, folders = tiny.new_folder(), [tiny.new_folder() for _ in range(2)]
    for folder in folders:
        model = tiny.model(tiny.folder(tokenizer=True))
        session = tiny.compiled_session(model, profile_name=str(folder), execution_cache_name=str(cache / "model"))
        session.run(tiny.inputs(tiny.PROMPTS[0]))
    fresh, cached = (set(table(folder)) for folder in folders)
    assert "model/layers.1/self_attn" in fresh
    assert cached == fresh
    engine = session.engine
    assert engine.runtime.compiled.folder is not None
    chained = onnx.load(engine.runtime.compiled.folder / "decoder.onnx", load_external_data=False)
    assert "Chain" in {node.op_type for node in chained.graph.node}


def test_function_bodies_have_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "none")
    folder = tiny.new_folder()
    profiled(folder).run(tiny.inputs(tiny.PROMPTS[0]))
    assert {"(body of FusedLinear)", "(body of RotaryCachedAttention)"} <= set(table(folder))


def test_a_file_in_place_of_the_folder() -> None:
    path = tiny.new_folder() / "file"
    path.write_text("text")
    with pytest.raises(PopTransformerError, match=r"Cannot write profiles to .*file: File exists"):
        profiled(path)


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("model/layers.3/mlp/up_proj/Linear", "model/layers.3/mlp/up_proj"),
        ("lm_head/Linear", "lm_head"),
        ("Loop", "(graph)"),
        ("_inlfunc_Linear_token_3_MatMul", "(body of Linear)"),
        ("_inlfunc_CachedAttention_Attention", "(body of CachedAttention)"),
    ],
)
def test_layers_of_nodes(node: str, layer: str) -> None:
    assert layer_of(node) == layer


def test_the_most_expensive_layer_comes_first() -> None:
    text = format_table({"cheap": LayerCost(2, 100, 0), "dear": LayerCost(3, 300, 2_500_000)})
    header, first, second, total = text.splitlines()
    assert first.split() == ["dear", "3", "0.30", "75.0%", "2.50"]
    assert second.split() == ["cheap", "2", "0.10", "25.0%", "0.00"]
    assert total.split() == ["total", "5", "0.40"]
    assert len(header) == len(first)


def test_an_empty_table() -> None:
    assert format_table({}).splitlines()[1].split()[:2] == ["total", "0"]


# -- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), [("layers.txt", "fp32"), ("quantization.txt", "int8")])
def test_a_table_that_finds_no_room(name: str, precision: str) -> None:
    folder = tiny.new_folder()
    (folder / name).symlink_to("/dev/full")
    message = f"Cannot write profiles to {folder / name}: No space left on device. Choose another session.profile_name."
    with pytest.raises(PopTransformerError) as error:
        session = tiny.compiled_session(tiny.model(precision=precision), profile_name=str(folder))
        session.run(tiny.inputs(tiny.PROMPTS[0]))
    assert str(error.value) == message


@pytest.mark.parametrize("content", ["", '[{"cat": "Node"'])
def test_a_profile_of_onnxruntime_that_was_cut_short(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.new_folder()
    (folder / "cut.json").write_text(content)
    runtime = tiny.engine().runtime
    monkeypatch.setattr(runtime, "end_profiling", lambda: [str(folder / "cut.json")])
    with pytest.raises(PopTransformerError, match=r"onnxruntime's profile .*cut\.json is incomplete .*Free some disk"):
        write_profile(runtime, folder)


def test_folders_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    home = tiny.new_folder("home")
    monkeypatch.setenv("HOME", str(home))
    tiny.compiled_session(tiny.model(), profile_name="~/profile").run(tiny.inputs(tiny.PROMPTS[0]))
    assert (home / "profile" / "layers.txt").is_file()
