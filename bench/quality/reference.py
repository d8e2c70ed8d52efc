# SPDX-License-Identifier: Apache-2.0
"""Logits of transformers in fp32, written to a file; runs where transformers and PyTorch are installed.

    python -m bench.quality.reference FOLDER OUTPUT.npy <windows.json

Standard input holds the windows, lists of token ids of equal length. What is written is float32 `[windows, tokens,
vocabulary]`.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    folder, output = sys.argv[1:]
    windows: list[list[int]] = json.load(sys.stdin)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    shape = (len(windows), len(windows[0]), model.config.vocab_size)
    logits = np.lib.format.open_memmap(output, mode="w+", dtype=np.float32, shape=shape)
    for i, ids in enumerate(windows):
        logits[i] = model(torch.tensor([ids])).logits[0].numpy()
    logits.flush()


if __name__ == "__main__":
    main()
