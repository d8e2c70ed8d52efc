# SPDX-License-Identifier: Apache-2.0
"""Text to train with on a machine without a network: Python's own language reference, as `help()` shows it.

Writes `train.txt` and `eval.txt` (a sentence a line, an empty line between documents), a metadata file for each, and
`vocab.txt`, the word pieces of the first one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

from tokenizers import BertWordPieceTokenizer

from poptransformer.checkpoint.files import write_text
from poptransformer.errors import PopTransformerError

HELD_OUT = 10  # every tenth document is for evaluation
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z(\"'])")
_UNDERLINE = set("*=-~\"'^+|# ")


def documents() -> list[str]:
    """The topics, sorted by name, a sentence a line; without headings' underlines and the frames of tables."""
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        paragraphs = re.split(r"\n\s*\n", topics[name])
        lines = (" ".join(line for line in p.split("\n") if set(line) - _UNDERLINE).split() for p in paragraphs)
        sentences = [s for words in lines if words for s in _SENTENCE_END.split(" ".join(words))]
        found.append("\n".join(sentences))
    return found


def write(folder: Path, vocab_size: int) -> int:
    """Writes the files; returns the number of word pieces, `vocab_size` at most."""
    texts = documents()
    parts = {
        "train": [text for index, text in enumerate(texts) if index % HELD_OUT],
        "eval": texts[::HELD_OUT],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        write_text(folder / f"{name}.txt", "\n\n".join(part) + "\n")
        write_text(folder / f"{name}_metadata.txt", f"{(folder / f'{name}.txt').resolve()}\n")
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(parts["train"], vocab_size=vocab_size, show_progress=False)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    write_text(folder / "vocab.txt", "".join(f"{piece}\n" for piece, _ in pieces))
    return len(pieces)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="where the files go (default: data)")
    parser.add_argument("--vocab_size", type=int, default=2000, help="the most word pieces (default: 2000)")
    options = parser.parse_args(arguments)
    if options.vocab_size < 500:
        parser.error(f"--vocab_size must be at least 500, found {options.vocab_size}")
    try:
        count = write(options.output_dir, options.vocab_size)
    except OSError as error:
        sys.exit(f"error: cannot write to {options.output_dir}: {error.strerror}")
    except PopTransformerError as error:
        sys.exit(f"error: {error}")
    print(f"{count} word pieces, train.txt and eval.txt in {options.output_dir}")


if __name__ == "__main__":
    main()
