# SPDX-License-Identifier: Apache-2.0
"""Train the small RWKV-4 of `examples/rwkv/tiny`, which lets the RWKV example write English without a network.

    python examples/rwkv/train_tiny.py                   # writes examples/rwkv/tiny: 1.4 million parameters in fp16
    python examples/rwkv/train_tiny.py --text a.txt b.txt --output /tmp/mine --steps 500

Text, tokenizer, training and what is reproducible: see `examples/tiny_training.py`. The model is transformers'
RwkvForCausalLM; only its recurrence, a loop whose backward pass copies whole windows for each token, is replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what the examples share

import torch
from tiny_training import Training, main
from transformers import RwkvConfig, RwkvForCausalLM
from transformers.models.rwkv import modeling_rwkv

VOCAB_SIZE, CONTEXT, WIDTH, LAYERS = 2048, 256, 128, 4
RESCALE_EVERY = 2  # layers: large models need it at every 6; here it shows that halving is right

transformers_recurrence = modeling_rwkv.rwkv_linear_attention


def recurrence(
    time_decay: torch.Tensor,
    time_first: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: list[torch.Tensor] | None = None,
    return_state: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
    """RWKV-4's weighted means of whole windows, in one operation per token (https://arxiv.org/abs/2305.13048, 3.1.2).

    Exponentials are taken relative to each channel's greatest key in the window, which cancels in the quotient. So
    nothing overflows, and no running maximum is needed as long as the keys of a window lie within 80 of each other.

    Args:
        time_decay: [D], logarithm of how fast weights fade.
        time_first: [D], bonus of the current token.
        key: [B, L, D].
        value: [B, L, D].
        state: of the tokens before; with one, or where one is wanted, transformers' own loop runs.
        return_state: whether the state is wanted.

    Returns:
        The means [B, L, D], and the state.
    """
    if state is not None or return_state:
        return transformers_recurrence(time_decay, time_first, key, value, state, return_state)
    fade = torch.exp(-torch.exp(time_decay)).repeat(2)
    relative = key - key.detach().amax(1, keepdim=True)
    weight, first = torch.exp(relative), torch.exp(relative + time_first)
    sums = [torch.zeros_like(fade).expand(len(key), -1)]  # numerators and denominators side by side
    for added in torch.cat([weight * value, weight], 2).unbind(1)[:-1]:
        sums.append(torch.addcmul(added, sums[-1], fade))
    numerator, denominator = torch.stack(sums, 1).chunk(2, 2)
    return (numerator + first * value) / (denominator + first), None


def new_model(eos: int) -> RwkvForCausalLM:
    """Build the untrained model, with transformers' initial weights of RWKV-4."""
    config = RwkvConfig(
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        rescale_every=RESCALE_EVERY,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return RwkvForCausalLM(config)


if __name__ == "__main__":
    modeling_rwkv.rwkv_linear_attention = recurrence
    main(
        Training(
            name="RWKV-4",
            new_model=new_model,
            vocab_size=VOCAB_SIZE,
            context=CONTEXT,
            peak_rate=4e-3,
            steps=3000,
            threads=1,
            output=Path(__file__).resolve().parent / "tiny",
        )
    )
