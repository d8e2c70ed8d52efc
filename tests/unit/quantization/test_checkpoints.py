# SPDX-License-Identifier: Apache-2.0
"""Weights that checkpoints hold in packed form become packed weights as they are."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from poptransformer.checkpoint import CorruptCheckpointError, StateDict, gguf_checkpoint, open_checkpoint, packed_rows
from poptransformer.errors import ConfigError
from poptransformer.quantization import PER_CHANNEL, packed_source
from poptransformer.quantization.checkpoints import GGML_BLOCK
from tests.unit.checkpoint.checkpoint_files import LLAMA_METADATA, llama_weights, to_gguf, write_gguf

from . import slow

GGML = {"Q4_0": ("int4", True), "Q4_1": ("int4", False), "Q8_0": ("int8", True)}


@pytest.fixture
def no_dequantizing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a tensor was dequantized")

    monkeypatch.setattr(gguf_checkpoint, "dequantize", refuse)


def expected(array: np.ndarray, kind: str) -> np.ndarray:
    ggml = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(array, ggml), ggml)


@pytest.mark.parametrize("kind", GGML)
def test_ggml_blocks_are_taken_as_they_are(tmp_path: Path, no_dequantizing: None, kind: str) -> None:
    weights = llama_weights()  # 40, 64 and 96 rows; queries and keys in llama.cpp's order
    path = write_gguf(tmp_path / "m.gguf", to_gguf(weights, kind), LLAMA_METADATA)
    state = open_checkpoint(path).state_dict
    for key, array in weights.items():
        source = packed_source(state.get_tensor(key, array.shape))
        if array.ndim == 1:
            assert source is None
            continue
        assert (source.format, source.symmetric, source.block) == (*GGML[kind], GGML_BLOCK)
        assert (source.columns, source.depth) == array.shape
        packed = source.load()
        np.testing.assert_array_equal(packed.dequantize(), expected(array, kind), err_msg=key)
        assert packed.saturated == 0 and packed.error == 0
        assert (packed.offsets is None) == source.symmetric
        assert slow.padding_codes(packed) <= {packed.kind.zero}


@pytest.mark.parametrize("kind", GGML)
def test_single_elements(tmp_path: Path, kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((19, 64)).astype(np.float32)
    stored = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    weights = {"token_embd.weight": (stored, kind)}
    state = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights, LLAMA_METADATA)).state_dict
    packed = packed_source(state["model.embed_tokens.weight"]).load()
    np.testing.assert_array_equal(slow.values(packed), expected(array, kind))


def test_what_a_layer_does_with_a_weight_keeps_or_drops_the_blocks(tmp_path: Path, no_dequantizing: None) -> None:
    path = write_gguf(tmp_path / "m.gguf", to_gguf(llama_weights(), "Q4_1"), LLAMA_METADATA)
    weight = open_checkpoint(path).state_dict["model.layers.0.mlp.up_proj.weight"]
    assert packed_source(weight) is not None and packed_source(weight.T.T) is not None
    assert packed_source(weight.T) is None  # its rows are the blocks' columns
    assert packed_source(np.zeros((4, 4), np.float32)) is None


def test_other_types_have_no_packed_source(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", to_gguf(llama_weights(), "Q5_1"), LLAMA_METADATA)
    state = open_checkpoint(path).state_dict
    assert packed_source(state["lm_head.weight"]) is None
    np.testing.assert_array_equal(state["lm_head.weight"], expected(llama_weights()["lm_head.weight"], "Q5_1"))


def test_damaged_scales_are_named(tmp_path: Path) -> None:
    stored = to_gguf(llama_weights(), "Q4_0")
    blocks = stored["output.weight"][0].copy()
    blocks[3, :2] = 0xFF  # NaN
    stored["output.weight"] = (blocks, "Q4_0")
    state = open_checkpoint(write_gguf(tmp_path / "m.gguf", stored, LLAMA_METADATA)).state_dict
    with pytest.raises(ConfigError, match=r"'output.weight' of .*m\.gguf has scales that are NaN or infinite"):
        packed_source(state["lm_head.weight"]).load()


# -- rows of small integers, as in chatglm-6b-int4 -------------------------------------------------------------------


def chatglm(rows: int, depth: int, bits: int, dtype: type = np.float16) -> tuple[StateDict, np.ndarray]:
    """A quantized layer, made as the published kernels describe it, and the float weight that it stands for."""
    random = np.random.default_rng(0)
    values = random.integers(-8 if bits == 4 else -128, 8 if bits == 4 else 128, (rows, depth))
    scale = random.uniform(0.001, 0.1, rows).astype(dtype)
    stored = np.zeros((rows, depth // (8 // bits)), np.int8)
    for row in range(rows):
        for column in range(stored.shape[1]):
            if bits == 8:
                stored[row, column] = values[row, column]
            else:
                byte = (values[row, 2 * column] & 15) << 4 | values[row, 2 * column + 1] & 15
                stored[row, column] = byte - 256 if byte > 127 else byte
    state = StateDict.wrap({"dense.weight": stored, "dense.weight_scale": scale}, "chatglm")
    return state, values.astype(np.float32) * scale.astype(np.float32)[:, None]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(16, 32), (37, 70)])
def test_rows_with_one_scale_each(bits: int, shape: tuple[int, int]) -> None:
    state, weight = chatglm(*shape, bits)
    tensor = packed_rows(state, "dense.weight", "dense.weight_scale", bits)
    updated = state.updated({"dense.weight": tensor})
    assert updated.shape("dense.weight") == shape and updated.dtype("dense.weight") == np.float32
    array = updated.get_tensor("dense.weight", shape)
    np.testing.assert_array_equal(array, weight)
    source = packed_source(array.T.T)
    assert (source.format, source.block, source.symmetric) == (f"int{bits}", PER_CHANNEL, True)
    packed = source.load()
    np.testing.assert_array_equal(packed.dequantize(), weight)
    np.testing.assert_array_equal(slow.values(packed), weight)
    assert packed.error == 0 and packed.scales.dtype == np.float16


def test_scales_that_fp16_cannot_hold_make_a_float_matrix() -> None:
    state, weight = chatglm(16, 32, 4, np.float32)
    array = packed_rows(state, "dense.weight", "dense.weight_scale").load()
    assert packed_source(array) is None
    np.testing.assert_array_equal(array, weight)


def test_rows_that_do_not_fit_their_scales() -> None:
    state, _ = chatglm(16, 32, 4)
    wrong = state.updated({"dense.weight_scale": np.ones(15, np.float16)})
    with pytest.raises(CorruptCheckpointError, match=r"is int8\[16, 16\] with scales \[15\]; expected int8 \[N, c"):
        packed_rows(wrong, "dense.weight", "dense.weight_scale")
    wrong = state.updated({"dense.weight": np.ones((16, 16), np.float16)})
    with pytest.raises(CorruptCheckpointError, match=r"is float16\[16, 16\]"):
        packed_rows(wrong, "dense.weight", "dense.weight_scale")
