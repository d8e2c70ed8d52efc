# SPDX-License-Identifier: Apache-2.0
"""Pieces of the alphabet: `[a, b, c, d]` is to be continued as `[b, c, d, e]`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

ALPHABET = range(26)  # a to z


class AlphabetDataset(Dataset):
    """Rows of consecutive letters, one longer than a sequence."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sequence[int]:
        return self.rows[index]

    @staticmethod
    def collate(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids`, `target_ids` and `attention_mask`, int32 [B, L] each."""
        letters = torch.tensor(rows, dtype=torch.int32)
        inputs, targets = letters[:, :-1].contiguous(), letters[:, 1:].contiguous()
        return {"input_ids": inputs, "target_ids": targets, "attention_mask": torch.ones_like(inputs)}


def _dataloader(input_params: dict[str, Any]) -> DataLoader:
    generator = random.Random(input_params["seed"])
    length = input_params["seq_length"]
    starts = [generator.randint(0, len(ALPHABET) - length - 1) for _ in range(input_params["num_samples"])]
    dataset = AlphabetDataset([list(ALPHABET[start : start + length + 1]) for start in starts])
    return DataLoader(dataset, input_params["batch_size"], shuffle=True, collate_fn=dataset.collate)


def get_train_dataloader(params: dict[str, Any]) -> DataLoader:
    """Batches to train with."""
    return _dataloader(params["train_input"])


def get_eval_dataloader(params: dict[str, Any]) -> DataLoader:
    """Batches to evaluate with."""
    return _dataloader(params["eval_input"])
