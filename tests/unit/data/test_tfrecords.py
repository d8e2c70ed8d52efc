# SPDX-License-Identifier: Apache-2.0
"""TFRecord files: written and read by us and by the package `tfrecord`, and what is said about damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tfrecord

from poptransformer.data.examples import (
    decode_example,
    decode_sequence_example,
    encode_example,
    encode_sequence_example,
)
from poptransformer.data.tfrecords import CorruptRecordError, RecordWriter, masked_crc, read_records
from poptransformer.errors import PopTransformerError

FEATURES = {"ids": [1, -2, 3_000_000_000], "weights": [0.5, 1.0], "text": [b"a", "ü".encode()]}


def write(path: Path, *records: bytes) -> Path:
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return path


def test_the_checksum_of_an_empty_record() -> None:
    assert masked_crc(b"") == 0xA282EAD8
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_come_back(tmp_path: Path) -> None:
    records = [b"", b"x" * 100_000, encode_example(FEATURES)]
    assert list(read_records(write(tmp_path / "a.tfrecords", *records))) == records
    assert decode_example(records[2]) == FEATURES


def test_others_read_what_we_write(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tfrecords", encode_example(FEATURES))
    description = {"ids": "int", "weights": "float", "text": "byte"}
    (found,) = tfrecord.tfrecord_loader(str(path), None, description)
    np.testing.assert_array_equal(found["ids"], FEATURES["ids"])
    np.testing.assert_array_equal(found["weights"], FEATURES["weights"])
    lists = write(tmp_path / "b.tfrecords", encode_sequence_example({"tokens": [[b"[CLS]"], [b"hello"], [b"[SEP]"]]}))
    ((_, found),) = tfrecord.tfrecord_loader(str(lists), None, {}, sequence_description={"tokens": "byte"})
    assert [bytes(np.ravel(token)) for token in found["tokens"]] == [b"[CLS]", b"hello", b"[SEP]"]


def test_we_read_what_others_write(tmp_path: Path) -> None:
    writer = tfrecord.TFRecordWriter(str(tmp_path / "a.tfrecords"))
    writer.write({"ids": ([1, 2, 3], "int"), "text": (b"abc", "byte")})
    writer.write({"length": (2, "int")}, {"tokens": ([[b"a", b"b"], [b"c"]], "byte")})
    writer.close()
    first, second = read_records(tmp_path / "a.tfrecords")
    assert decode_example(first) == {"ids": [1, 2, 3], "text": [b"abc"]}
    assert decode_sequence_example(second) == {"tokens": [[b"a", b"b"], [b"c"]]}


@pytest.mark.parametrize(
    ("position", "message"),
    [(0, "length of the record at offset 0"), (9, "length"), (14, "record at offset 0 is damaged"), (-1, "offset 26")],
)
def test_a_damaged_byte_is_found(tmp_path: Path, position: int, message: str) -> None:
    path = write(tmp_path / "a.tfrecords", b"0123456789", b"more")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptRecordError, match=f"a.tfrecords.*{message}"):
        list(read_records(path))


@pytest.mark.parametrize("left", [3, 11, 15, 25, 30])
def test_a_file_that_was_cut_is_found(tmp_path: Path, left: int) -> None:
    path = write(tmp_path / "a.tfrecords", b"0123456789", b"more")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CorruptRecordError, match=rf"ends within the record at offset {0 if left < 26 else 26}"):
        list(read_records(path))


def test_what_is_no_example() -> None:
    with pytest.raises(PopTransformerError, match="The record is no Example"):
        decode_example(b"\xff\xff")
