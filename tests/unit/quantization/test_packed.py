# SPDX-License-Identifier: Apache-2.0
"""The packed layout against plain loops over its description."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from poptransformer.errors import PopTransformerError
from poptransformer.quantization import FORMATS, PackedWeight
from poptransformer.quantization.layout import untile_codes, untile_scales

from . import slow

SHAPES = [(1, 1), (16, 32), (17, 33), (5, 100), (40, 256)]


def random_rows(name: str, rows: int, depth: int, block: int, offsets: bool) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(rows * depth)
    kind = FORMATS[name]
    blocks = -(-depth // block) if block else 1
    codes = random.integers(0, 1 << kind.bits, (rows, depth), np.uint8)
    if kind.dtype is not None:
        finite = np.isfinite(np.arange(256, dtype=np.uint8).view(kind.dtype).astype(np.float32))
        codes = random.choice(np.flatnonzero(finite), (rows, depth)).astype(np.uint8)
    scales = random.standard_normal((rows, blocks)).astype(kind.scale_dtype)
    return codes, scales, random.standard_normal((rows, blocks)).astype(np.float16) if offsets else None


@pytest.mark.parametrize("block", [32, 64, 128, 0])
@pytest.mark.parametrize(
    ("name", "offsets"), [("int4", False), ("int4", True), ("int8", False), ("e4m3fn", False), ("e5m2fnuz", False)]
)
def test_packing_and_unpacking(name: str, offsets: bool, block: int) -> None:
    for rows, depth in SHAPES:
        codes, scales, shifts = random_rows(name, rows, depth, block, offsets)
        packed = PackedWeight.from_rows(name, codes, scales, shifts, block=block)
        assert (packed.columns, packed.depth, packed.block) == (rows, depth, block)
        np.testing.assert_array_equal(packed.dequantize(), slow.values(packed))
        np.testing.assert_array_equal(untile_codes(packed.codes, rows, depth), codes)
        np.testing.assert_array_equal(untile_scales(packed.scales, rows), scales)
        assert slow.padding_codes(packed) <= {FORMATS[name].zero}
        assert not packed.scales.transpose(0, 2, 1).reshape(-1, packed.scales.shape[1])[rows:].any()
        if shifts is not None:
            np.testing.assert_array_equal(untile_scales(packed.offsets, rows), shifts)


def test_a_known_weight() -> None:
    codes = np.full((2, 32), 8, np.uint8)
    codes[1, 5], codes[1, 21] = 3, 12  # one byte: columns 5 and 5 + 16
    packed = PackedWeight.from_rows("int4", codes, np.array([[1.0], [0.5]]), block=32)
    assert packed.codes.shape == (1, 1, 4, 16, 4)
    assert packed.codes[0, 0, 1, 1, 1] == 0xC3 and (packed.codes == 0x88).sum() == 16 * 16 - 1
    assert packed.dequantize()[1, [5, 21]].tolist() == [-2.5, 2.0]
    assert packed.nbytes == 256 + 32


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_per_weight(name: str) -> None:
    kind = FORMATS[name]
    packed = PackedWeight.from_rows(name, np.zeros((64, 128), np.uint8), np.ones((64, 4)), block=32)
    assert packed.scales.dtype == (np.float32 if kind.is_float8 else np.float16)
    assert packed.nbytes == 64 * (128 * kind.bits // 8 + 4 * packed.scales.itemsize)


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = PackedWeight.from_rows("int4", np.zeros((16, 64), np.uint8), np.ones((16, 2)), block=32)
    with pytest.raises(PopTransformerError, match=r"codes .* must be uint8\[1, 2, 4, 16, 4\], found uint8\[1, 2, 8"):
        PackedWeight("int4", 16, 64, 32, np.zeros((1, 2, 8, 16, 4), np.uint8), good.scales)
    with pytest.raises(PopTransformerError, match=r"scales .* must be float16\[1, 2, 16\], found float32"):
        PackedWeight("int4", 16, 64, 32, good.codes, good.scales.astype(np.float32))
    with pytest.raises(PopTransformerError, match=r"offsets .* found float16\[1, 1, 16\]"):
        PackedWeight("int4", 16, 64, 32, good.codes, good.scales, good.scales[:, :1])


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_every_fp8_code_is_worth_what_ml_dtypes_says(name: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    packed = PackedWeight.from_rows(name, codes, np.ones((8, 1)), block=0)
    expected = codes.view(getattr(ml_dtypes, f"float8_{name}")).astype(np.float32)
    np.testing.assert_array_equal(packed.dequantize(), expected)
