# SPDX-License-Identifier: Apache-2.0
"""Text files to TFRecord files for masked language modelling without next sentence prediction.

Files are read and cut into pieces by several processes; examples are made by one, so the result does not depend on
their number. Nothing appears in the output folder before all of it is written.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from poptransformer.checkpoint.files import write_text
from poptransformer.data.documents import Sentences, input_files, line_sentences, read_documents, spacy_sentences
from poptransformer.data.examples import encode_example, encode_sequence_example
from poptransformer.data.mlm import Masking, Windows, static_features
from poptransformer.data.tfrecords import RecordWriter
from poptransformer.data.word_pieces import CLS, SEP, WordPieces
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.utils.logging import set_up_logging
from poptransformer.utils.progress import progress

Documents = list[list[str]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="create_tfrecords_mlm_only.py",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--metadata_files", nargs="+", required=True, help="text files that list the input files, a path a line")
    add("--multiple_docs_in_single_file", action="store_true", help="a file holds several documents")
    add("--multiple_docs_separator", default="\\n", help="line between documents; \\n is an empty line")
    add("--single_sentence_per_line", action="store_true", help="documents have a sentence on each line")
    add("--allow_cross_document_examples", action="store_true", help="examples may hold pieces of several documents")
    add("--document_separator_token", default=SEP, help="piece between those")
    add("--overlap_size", type=int, help="pieces that two examples have in common; a quarter of the length if left out")
    add("--buffer_size", type=int, default=1000000, help="pieces whose documents are shuffled together")
    add("--input_files_prefix", default="", help="put before the paths of the input files")
    add("--vocab_file", required=True, help="vocabulary, a word piece a line")
    add("--do_lower_case", action="store_true", help="for uncased vocabularies")
    add("--max_seq_length", "--max_sequence_length", type=int, default=128, help="pieces of an example")
    add("--dupe_factor", type=int, default=10, help="times that the data is written, with different masks")
    add("--short_seq_prob", type=float, default=0.1, help="share of examples that are shorter")
    add("--min_short_seq_length", type=int, help="the fewest pieces of those; overlap_size + 2 if left out")
    add("--disable_masking", action="store_true", help="write pieces, to be masked while training")
    add("--masked_lm_prob", type=float, default=0.15, help="share of pieces that are masked")
    add("--max_predictions_per_seq", type=int, default=20, help="the most masked pieces of an example")
    add("--spacy_model", default="en_core_web_sm", help="spaCy model that finds sentences")
    add("--mask_whole_word", action="store_true", help="mask all pieces of a word or none")
    add("--output_dir", default="./tfrecords/", help="where the files go")
    add("--num_output_files", type=int, default=10, help="files to write")
    add("--name", default="examples", help="beginning of their names")
    add("--seed", type=int, default=0, help="of shuffling, lengths and masks")
    add("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that read files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; a mistake of the user ends it with one sentence and exit status 1."""
    options = parse(arguments)
    set_up_logging("info")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half files are cleared away
    try:
        counts = create(options)
    except PopTransformerError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"{counts['n_examples']} examples of {counts['n_docs']} documents in {options.output_dir}")


def create(options: argparse.Namespace) -> dict[str, int]:
    """Writes the files `{name}-{1..N}.tfrecords` and `data_params.json`; returns its `n_examples` and `n_docs`.

    Raises:
        PopTransformerError: an argument, a file or the vocabulary is wrong.
    """
    for name in ("buffer_size", "dupe_factor", "num_output_files", "num_workers"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, found {getattr(options, name)}.")
    words = WordPieces(options.vocab_file, options.do_lower_case)
    words.require(options.document_separator_token)
    windows = Windows(
        options.max_seq_length,
        options.overlap_size,
        options.short_seq_prob,
        options.min_short_seq_length,
        options.document_separator_token if options.allow_cross_document_examples else None,
    )
    never = frozenset((CLS, SEP, options.document_separator_token))
    masking = Masking(options.masked_lm_prob, options.max_predictions_per_seq, options.mask_whole_word, never)
    files = input_files(options.metadata_files, options.input_files_prefix)
    passes = 1 if options.disable_masking else options.dupe_factor
    rng = random.Random(options.seed)
    rng.shuffle(files)
    counts = {"n_examples": 0, "n_docs": 0}

    def records() -> Iterator[bytes]:
        with progress("reading files", total=passes * len(files)) as advance:
            for number in range(passes):
                documents = _counted(_tokenized(options, files), counts, advance, count=number == 0)
                for example in windows.examples(_shuffled(documents, options.buffer_size, rng), rng):
                    counts["n_examples"] += 1
                    if options.disable_masking:
                        yield encode_sequence_example({"tokens": [[piece.encode()] for piece in example]})
                    else:
                        yield encode_example(static_features(example, masking, words, options.max_seq_length, rng))

    _write(Path(options.output_dir), options, records(), counts)
    return counts


# ---- reading ----------------------------------------------------------------------------------------------------


class _Reader:
    """Cuts one file into documents of pieces; made once in each process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.words = WordPieces(options.vocab_file, options.do_lower_case)
        separator = options.multiple_docs_separator.replace("\\n", "\n")
        self.separator = separator if options.multiple_docs_in_single_file else None
        self.sentences: Sentences = (
            line_sentences if options.single_sentence_per_line else spacy_sentences(options.spacy_model)
        )

    def __call__(self, path: Path) -> Documents:
        documents = []
        for document in read_documents(path, self.separator):
            pieces = [piece for sentence in self.sentences(document) for piece in self.words.split(sentence)]
            if pieces:
                documents.append(pieces)
        return documents


@functools.lru_cache(maxsize=1)
def _reader(key: str) -> _Reader:
    return _Reader(argparse.Namespace(**json.loads(key)))


def _read(task: tuple[str, Path]) -> Documents:
    return _reader(task[0])(task[1])


def _tokenized(options: argparse.Namespace, files: Sequence[Path]) -> Iterator[Documents]:
    """Yields each file's documents, in the order of the files."""
    tasks = [(json.dumps(vars(options), sort_keys=True), path) for path in files]
    if options.num_workers == 1 or len(files) == 1:
        yield from map(_read, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(min(options.num_workers, len(files))) as pool:
        yield from pool.imap(_read, tasks)


def _counted(files: Iterable[Documents], counts: dict[str, int], advance: object, count: bool) -> Iterator[Documents]:
    for documents in files:
        counts["n_docs"] += len(documents) if count else 0
        advance(1)  # type: ignore[operator]
        yield documents


def _shuffled(files: Iterable[Documents], buffer_size: int, rng: random.Random) -> Iterator[list[str]]:
    """Yields documents, shuffled among those of `buffer_size` pieces; files are never cut."""
    buffer: Documents = []
    for documents in files:
        buffer.extend(documents)
        if sum(map(len, buffer)) >= buffer_size:
            rng.shuffle(buffer)
            yield from buffer
            buffer = []
    rng.shuffle(buffer)
    yield from buffer


# ---- writing ----------------------------------------------------------------------------------------------------


def _write(folder: Path, options: argparse.Namespace, records: Iterator[bytes], counts: dict[str, int]) -> None:
    """Deals records out to the files in turn; they get their names when all are complete."""
    names = [f"{options.name}-{number}.tfrecords" for number in range(1, options.num_output_files + 1)]
    others = sorted({path.name for path in folder.glob(f"{glob.escape(options.name)}-*.tfrecords")} - set(names))
    if others:  # readers would take them for part of this run
        raise ConfigError(f"{folder} holds {others[0]} of another run. Remove it or choose another --output_dir.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{options.name}.", dir=folder))
    except OSError as error:
        raise PopTransformerError(
            f"Cannot write to {folder}: {error.strerror}. Choose another --output_dir."
        ) from error
    try:
        writers = [RecordWriter(temporary / name) for name in names]
        try:
            for number, record in enumerate(records):
                writers[number % len(writers)].write(record)
        finally:
            for writer in writers:
                writer.close()
        if not counts["n_examples"]:
            raise ConfigError("The input files hold no text that the vocabulary knows.")
        for name in names:
            (temporary / name).chmod(0o644)
            os.replace(temporary / name, folder / name)
        write_text(folder / "data_params.json", json.dumps({**vars(options), **counts}, indent=2) + "\n")
    except OSError as error:
        raise PopTransformerError(f"Writing to {folder} failed: {error.strerror}. Free some disk space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
