# SPDX-License-Identifier: Apache-2.0
"""create_tfrecords_mlm_only.py on small texts: examples, masks, files, and what it refuses."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from poptransformer.data.create_tfrecords_mlm_only import main, parse
from poptransformer.data.examples import decode_example, decode_sequence_example
from poptransformer.data.mlm import Masking, Windows
from poptransformer.data.tfrecords import read_records

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "##s", "dog", "sat", "on", "mat", ".", "ran", "##ning", "here"]
VOCABULARY = [*SPECIAL, *WORDS]
ID = {piece: index for index, piece in enumerate(VOCABULARY)}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three files, each of two documents with sentences of their own."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for number in range(3):
        first = "\n".join(["the cats sat on the mat."] * (4 + number))
        (tmp_path / f"{number}.txt").write_text(first + "\n\n" + "the dog ran here.\nthe dog sat.\n")
    (tmp_path / "metadata.txt").write_text("0.txt\n1.txt\n\n2.txt\n")
    return tmp_path


def create(folder: Path, *flags: str, output: str = "out") -> Path:
    required = ["--metadata_files", str(folder / "metadata.txt"), "--vocab_file", str(folder / "vocab.txt")]
    usual = [
        "--input_files_prefix",
        str(folder),
        "--output_dir",
        str(folder / output),
        "--multiple_docs_in_single_file",
    ]
    main([*required, *usual, "--single_sentence_per_line", "--num_workers", "1", *flags])
    return folder / output


def records(folder: Path) -> list[bytes]:
    return [record for path in sorted(folder.glob("*.tfrecords")) for record in read_records(path)]


def tokens(folder: Path) -> list[list[str]]:
    rows = [decode_sequence_example(record)["tokens"] for record in records(folder)]
    return [[piece.decode() for (piece,) in row] for row in rows]


def test_defaults_are_the_seeds() -> None:
    options = vars(parse(["--metadata_files", "m", "--vocab_file", "v"]))
    expected = {
        "multiple_docs_separator": "\\n",
        "document_separator_token": "[SEP]",
        "overlap_size": None,
        "buffer_size": 1000000,
        "max_seq_length": 128,
        "dupe_factor": 10,
        "short_seq_prob": 0.1,
        "min_short_seq_length": None,
        "masked_lm_prob": 0.15,
        "max_predictions_per_seq": 20,
        "spacy_model": "en_core_web_sm",
        "output_dir": "./tfrecords/",
        "num_output_files": 10,
        "name": "examples",
        "seed": 0,
    }
    assert {name: options[name] for name in expected} == expected
    assert parse(["--metadata_files", "m", "--vocab_file", "v", "--max_sequence_length", "512"]).max_seq_length == 512


def test_every_piece_is_in_an_example(texts: Path) -> None:
    flags = ("--disable_masking", "--max_seq_length", "12", "--overlap_size", "0", "--short_seq_prob", "0")
    folder = create(texts, *flags, "--num_output_files", "2")
    found = tokens(folder)
    assert all(row[0] == "[CLS]" and row[-1] == "[SEP]" and len(row) <= 12 for row in found)
    pieces = Counter(piece for row in found for piece in row[1:-1])
    sentences = 4 + 5 + 6
    assert pieces == Counter(
        {"the": 2 * sentences + 6, "cat": sentences, "##s": sentences, "sat": sentences + 3, "on": sentences}
        | {"mat": sentences, ".": sentences + 6, "dog": 6, "ran": 3, "here": 3}
    )
    params = json.loads((folder / "data_params.json").read_text())
    assert (params["n_docs"], params["n_examples"]) == (6, len(found))
    sizes = [len(list(read_records(folder / f"examples-{number}.tfrecords"))) for number in (1, 2)]
    assert sum(sizes) == len(found) and sizes[0] - sizes[1] in (0, 1)


def test_static_masks(texts: Path) -> None:
    folder = create(texts, "--max_seq_length", "16", "--dupe_factor", "3", "--max_predictions_per_seq", "5")
    found = [decode_example(record) for record in records(folder)]
    for example in found:
        length, count = sum(example["input_mask"]), int(sum(example["masked_lm_weights"]))
        assert len(example["input_ids"]) == 16 and len(example["masked_lm_positions"]) == 5
        assert count == min(5, max(1, round(length * 0.15)))
        positions = example["masked_lm_positions"][:count]
        assert positions == sorted(set(positions)) and all(0 < position < length - 1 for position in positions)
        assert not {ID["[CLS]"], ID["[SEP]"]} & set(example["masked_lm_ids"][:count])
        assert example["input_ids"][length:] == [0] * (16 - length)
    ids = [tuple(example["input_ids"]) for example in found]
    assert len(set(ids)) > len(ids) / 3, "every time other masks"


def test_examples_across_documents(texts: Path) -> None:
    flags = ("--disable_masking", "--overlap_size", "2", "--allow_cross_document_examples")
    (row,) = {len(row) for row in tokens(create(texts, *flags, "--max_seq_length", "200", "--short_seq_prob", "0"))}
    assert row == 2 + 5 + 15 * 8 + 3 * (5 + 4)  # everything in one example, five separators


def test_the_number_of_processes_changes_nothing(texts: Path) -> None:
    one = create(texts, "--max_seq_length", "16", output="one")
    two = create(texts, "--max_seq_length", "16", "--num_workers", "2", output="two")
    assert records(one) == records(two)
    assert records(create(texts, "--max_seq_length", "16", "--seed", "1", output="other")) != records(one)


def test_masks_are_80_10_10() -> None:
    rng, kinds = random.Random(0), Counter()
    masking = Masking(max_predictions_per_seq=100)
    pieces = ["[CLS]", *["cat"] * 98, "[SEP]"]
    for _ in range(400):
        masked, positions, labels = masking.mask(pieces, ["x"], rng)
        assert len(positions) == 15 and set(labels) == {"cat"}
        kinds.update(masked[position] for position in positions)
    assert [round(kinds[piece] / 6000, 1) for piece in ("[MASK]", "x", "cat")] == [0.8, 0.1, 0.1]


def test_whole_words() -> None:
    masking = Masking(0.5, 20, mask_whole_word=True)
    pieces = ["[CLS]", *["ran", "##ning", "cat"] * 4, "[SEP]"]
    for seed in range(20):
        chosen = set(masking.mask(pieces, VOCABULARY, random.Random(seed))[1])
        assert all((index in chosen) == (index + 1 in chosen) for index in range(1, 13, 3))
        assert 0 < len(chosen) <= 7


def test_windows_overlap() -> None:
    document = [str(number) for number in range(20)]
    rows = list(Windows(10, 3, 0.0).examples([document], random.Random(0)))
    assert [row[1] for row in rows] == ["0", "5", "10", "15"]
    short = list(Windows(10, 0, 1.0, 3).examples([document] * 50, random.Random(0)))
    assert {len(row) - 2 for row in short[:-1]} >= set(range(3, 9))


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ("metadata.txt=nowhere.txt", (), r"metadata.txt, line 1: .*nowhere.txt is no file"),
        ("metadata.txt=", (), "lists no files"),
        ("1.txt=", (), "1.txt is empty"),
        ("vocab.txt=a\nb", (), r"has no \[CLS\]; expected BERT's"),
        (f"vocab.txt={chr(10).join([*VOCABULARY, 'cat'])}", (), "holds 'cat' more than once"),
        ("", ("--document_separator_token", "[DOC]"), r"has no \[DOC\]"),
        ("", ("--min_short_seq_length", "3"), "min_short_seq_length must be from 34 to 126, found 3"),
        ("", ("--overlap_size", "126"), "overlap_size must be from 0 to 125"),
        ("", ("--masked_lm_prob", "0"), "masked_lm_prob must be above 0"),
        ("", ("--num_output_files", "0"), "--num_output_files must be at least 1"),
        ("", ("--vocab_file", "nowhere"), "Cannot read the vocabulary nowhere"),
    ],
)
def test_wrong_input(texts: Path, change: str, flags: tuple[str, ...], message: str) -> None:
    if change:
        name, _, content = change.partition("=")
        (texts / name).write_text(content)
    with pytest.raises(SystemExit, match=message):
        create(texts, *flags)
    assert not list((texts / "out").glob("**/*")), "no half file is left"


def test_files_of_another_run_are_not_mixed_in(texts: Path) -> None:
    create(texts, "--num_output_files", "3")
    create(texts, "--num_output_files", "3", "--seed", "1")  # replaces them
    with pytest.raises(SystemExit, match="holds examples-3.tfrecords of another run"):
        create(texts, "--num_output_files", "2")
    assert len(list((texts / "out").iterdir())) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_leaves_nothing(texts: Path, number: int, code: int) -> None:
    script = Path(__file__).parents[3] / "scripts" / "create_tfrecords_mlm_only.py"
    paths = {"metadata_files": "metadata.txt", "vocab_file": "vocab.txt", "output_dir": "out"}
    flags = [f"--{name}={texts / path}" for name, path in paths.items()]
    flags += [f"--input_files_prefix={texts}", "--single_sentence_per_line", "--dupe_factor=1000000", "--num_workers=1"]
    # A shell that runs tests in the background has them, and what they start, ignore SIGINT.
    before = signal.signal(number, signal.SIG_DFL)
    running = subprocess.Popen([sys.executable, str(script), *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    signal.signal(number, before)
    deadline = time.monotonic() + 200
    while not list((texts / "out").glob(".examples.*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    assert running.wait(100) == code
    assert not list((texts / "out").iterdir())
