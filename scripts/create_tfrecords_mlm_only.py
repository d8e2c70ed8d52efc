# SPDX-License-Identifier: Apache-2.0
"""Text files to TFRecord files: python scripts/create_tfrecords_mlm_only.py --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from poptransformer.data.create_tfrecords_mlm_only import main

if __name__ == "__main__":
    main()
