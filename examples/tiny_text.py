# SPDX-License-Identifier: Apache-2.0
"""The text that the small models learn from: Jane Austen's novels out of a Debian package, chapter by chapter."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

DEBIAN_PACKAGE = "r-cran-janeaustenr"
DEBIAN_DATA_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
END_OF_TEXT = "<|endoftext|>"
HEADING = re.compile(r"^(?:chapter|volume) +(?:[ivxlc]+|\d+)\.?$", re.IGNORECASE | re.MULTILINE)
CLOSING = re.compile(r"^(?:finis|the end)\.?$", re.IGNORECASE | re.MULTILINE)
PLAIN = str.maketrans("“”‘’", "\"\"''", "_")  # underscores mark italics
PARAGRAPHS = 50  # of a piece of a book without chapter headings


def read_r_character_vectors(database: bytes) -> list[list[str]]:
    r"""Read the strings of every character vector in an R "lazy load" database.

    The file is a row of chunks: a 4-byte big-endian size, then a zlib stream of one object in R's binary serialization
    format 3 ("R Internals", section 1.8): `X\n`, three ints, the length and name of the encoding, then for a character
    vector the int 16, the count, and per string an int of flags, its length (-1: missing) and its bytes.
    """
    vectors: list[list[str]] = []
    offset = 0
    while offset < len(database):
        stream = zlib.decompressobj()
        chunk = stream.decompress(database[offset + 4 :])
        offset = len(database) - len(stream.unused_data)
        position = 26 + struct.unpack_from(">i", chunk, 14)[0]
        kind, count = struct.unpack_from(">2i", chunk, position - 8)
        if not chunk.startswith(b"X\n") or kind != 16:
            raise ValueError(f"expected a serialized R character vector (kind 16), found kind {kind}")
        vectors.append([])
        for _ in range(count):
            size = max(struct.unpack_from(">2i", chunk, position)[1], 0)
            vectors[-1].append(chunk[position + 8 : position + 8 + size].decode("utf-8"))
            position += 8 + size
    return vectors


def debian_novels() -> list[list[str]]:
    """Fetch the novels' package into a temporary folder and return the lines of each novel."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for command in (["apt-get", "download", DEBIAN_PACKAGE], ["sh", "-c", "dpkg-deb -x *.deb ."]):
                subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            return read_r_character_vectors((Path(folder) / DEBIAN_DATA_FILE).read_bytes())
        except (OSError, subprocess.CalledProcessError) as error:
            found = getattr(error, "stderr", error)
            hint = "Run `apt-get update` as root first, or give your own text with --text FILE..."
            raise SystemExit(f"expected the package {DEBIAN_PACKAGE} from apt, found: {found}\n{hint}") from error


def chapters(lines: list[str]) -> list[str]:
    """Split one book into chapters of one line per paragraph, without title page, headings and marks of italics."""
    text = CLOSING.sub("", "\n".join(line.strip() for line in lines).translate(PLAIN))
    pieces = [re.split(r"\n{2,}", piece) for piece in HEADING.split(text)]
    whole = pieces[0]  # all of a book without headings, else its title page
    pieces = pieces[1:] or [whole[start : start + PARAGRAPHS] for start in range(0, len(whole), PARAGRAPHS)]
    texts = ["\n".join(" ".join(block.split()) for block in piece if block.strip()) for piece in pieces]
    return [text for text in texts if text]
