# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files anew; read the diff before you commit it.

python -m tests.golden.update            # the graphs
python -m tests.golden.update smollm2    # the texts of SmolLM2, from transformers (a minute or two)
"""

from __future__ import annotations

import sys

from tests.golden import smollm2
from tests.golden.graphs import CONFIGS, describe, path


def update_graphs() -> None:
    """Writes one file per family and says which have changed."""
    for family in CONFIGS:
        text, target = describe(family), path(family)
        same = target.is_file() and target.read_text(encoding="utf-8") == text
        target.write_text(text, encoding="utf-8")
        print(f"{target}: {'unchanged' if same else 'written'}")


def main(arguments: list[str]) -> None:
    """Writes what the arguments ask for."""
    if arguments not in ([], ["smollm2"]):
        sys.exit(__doc__)
    if arguments:
        smollm2.write_golden()
        print(f"{smollm2.GOLDEN}: written")
    else:
        update_graphs()


if __name__ == "__main__":
    main(sys.argv[1:])
