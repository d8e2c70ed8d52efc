# SPDX-License-Identifier: Apache-2.0
"""Saves a checkpoint in this package's own format.

python -m bench.save_model CHECKPOINT FOLDER '{"precision": "int4"}'      # what `poptransformer.load` takes
"""

from __future__ import annotations

import json
import sys

import poptransformer
from poptransformer.errors import PopTransformerError


def main() -> None:
    source, folder, settings = sys.argv[1:]
    try:
        poptransformer.load(source, **json.loads(settings)).save(folder)
    except PopTransformerError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
