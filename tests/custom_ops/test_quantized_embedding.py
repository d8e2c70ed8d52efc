# SPDX-License-Identifier: Apache-2.0
"""QuantizedEmbedding against numpy: the layout of packed tables, padding, ids, errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

FLOAT8 = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}


def packed(codes, nibbles):
    """Codes `[N, K]`, both padded, in the order of memory."""
    tiles, chunks = codes.shape[0] // 16, codes.shape[1] // 32
    ordered = codes.reshape(tiles, 16, chunks, 8, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(ordered[:, :, :4] | ordered[:, :, 4:] << 4 if nibbles else ordered)


def table(format, N, K, block):
    """A random table `[N, K]` and the inputs that hold it."""
    random = np.random.default_rng(N + K)
    padded = -(-K // block) * block
    codes = random.integers(0, 16 if format.startswith("int4") else 256, (-(-N // 16) * 16, padded)).astype(np.uint8)
    is_float, with_offsets = format in FLOAT8, format == "int4 offsets"
    values = codes.view(FLOAT8[format]).astype(np.float32) if is_float else codes.astype(np.float32)
    values -= {"int4": 8, "int8": 128}.get(format, 0)
    shape = (len(codes) // 16, padded // block, 16)
    scales = random.uniform(0.01, 0.1, shape).astype(np.float32 if is_float else np.float16)
    parts = [packed(codes, format.startswith("int4")), scales]

    def by_column(tiles):
        return np.repeat(tiles.transpose(0, 2, 1).reshape(len(codes), -1).astype(np.float32), block, 1)

    values *= by_column(scales)
    if with_offsets:
        parts.append(random.standard_normal(shape).astype(np.float16))
        values += by_column(parts[-1])
    return values[:N, :K], parts


@pytest.mark.parametrize("size", [(16, 32, 32), (33, 75, 32), (20, 200, 64), (17, 130, 256), (5, 7, 32)], ids=str)
@pytest.mark.parametrize("format", ["int4", "int4 offsets", "int8", *FLOAT8])
def test_every_row(kernels, format, size):
    N, K, _ = size
    values, parts = table(format, *size)
    ids = np.arange(N)[::-1].copy()
    attributes = {"format": format.split()[0], "columns": N, "depth": K}
    (y,) = kernels.run("QuantizedEmbedding", [ids, *parts], **attributes)
    np.testing.assert_array_equal(y, values[ids])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (2, 1, 40)], ids=str)
def test_any_shape_of_ids(kernels, shape):
    values, parts = table("int8", 40, 96, 32)
    ids = np.random.default_rng(0).integers(0, 40, shape)
    (y,) = kernels.run("QuantizedEmbedding", [np.asarray(ids), *parts], format="int8", columns=40, depth=96)
    np.testing.assert_array_equal(y, values[ids])


IDS = np.array([0, 3])
ATTRIBUTES = {"format": "int4", "columns": 20, "depth": 50}
CODES, SCALES = np.zeros((2, 2, 4, 16, 4), np.uint8), np.zeros((2, 1, 16), np.float16)
ERRORS = [
    ([np.array([3, 20]), CODES, SCALES], {}, "input 'ids' must be from 0 to 19, found 20"),
    ([np.array([-1]), CODES, SCALES], {}, "input 'ids' must be from 0 to 19, found -1"),
    ([IDS, CODES[:1], SCALES], {}, r"input 'codes' must be \[2, Kt, 4, 16, 4\], found \[1, 2, 4, 16, 4\]"),
    ([IDS, CODES, SCALES], {"format": "int8"}, r"input 'codes' must be \[2, Kt, 8, 16, 4\]"),
    ([IDS, CODES[:, :1].copy(), SCALES], {}, "input 'codes' must be of 2 chunks or more"),
    ([IDS, CODES, SCALES.astype(np.float32)], {}, "input 'scales' must be float16, found float32"),
    ([IDS, CODES, np.zeros((2, 3, 16), np.float16)], {}, "input 'scales' must be of a number of blocks that divides 2"),
    ([IDS, CODES, SCALES[:1]], {}, r"input 'scales' must be \[2, Kb, 16\]"),
    ([IDS, CODES, SCALES, SCALES[:1]], {}, r"input 'offsets' must be \[2, 1, 16\], found \[1, 1, 16\]"),
    ([IDS, np.repeat(CODES, 2, 2), SCALES, SCALES], {"format": "int8"}, "input 'offsets' must be absent"),
    ([IDS, CODES, SCALES], {"format": "int3"}, "attribute 'format' must be int4, int8, .* found int3"),
    ([IDS, CODES, SCALES], {"columns": 0}, "attribute 'columns' must be 1 or more, found 0"),
]


@pytest.mark.parametrize(("inputs", "changes", "message"), ERRORS, ids=[message[-30:] for _, _, message in ERRORS])
def test_errors_name_what_is_wrong(kernels, inputs, changes, message):
    with pytest.raises(Exception, match=f"QuantizedEmbedding: {message}"):
        kernels.run("QuantizedEmbedding", inputs, **{**ATTRIBUTES, **changes})
