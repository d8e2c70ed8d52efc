# SPDX-License-Identifier: Apache-2.0
"""Train the small GPT-2 of `examples/gpt2/tiny`, which lets the GPT-2 example write English without a network.

    python examples/gpt2/train_tiny.py                   # writes examples/gpt2/tiny: 1.1 million parameters in fp16
    python examples/gpt2/train_tiny.py --text a.txt b.txt --output /tmp/mine --steps 500

Text, tokenizer, training and what is reproducible: see `examples/tiny_training.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what the examples share

from tiny_training import Training, main
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB_SIZE, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 128, 4, 4


def new_model(eos: int) -> GPT2LMHeadModel:
    """Build the untrained model; while it trains its GELU is torch's fused kernel of the same tanh formula."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,  # so small a model needs no dropout
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return GPT2LMHeadModel(config)


def with_exact_name_of_gelu(model: GPT2LMHeadModel) -> None:
    """Name the activation as GPT-2's checkpoints do."""
    model.config.activation_function = "gelu_new"


if __name__ == "__main__":
    main(
        Training(
            name="GPT-2",
            new_model=new_model,
            vocab_size=VOCAB_SIZE,
            context=CONTEXT,
            peak_rate=4e-3,
            steps=4000,
            threads=2,
            output=Path(__file__).resolve().parent / "tiny",
            before_saving=with_exact_name_of_gelu,
        )
    )
