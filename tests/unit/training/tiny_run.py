# SPDX-License-Identifier: Apache-2.0
"""A small model, with dropout and data that is drawn at random, trained by `run`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from poptransformer import layers
from poptransformer.graph import Graph
from poptransformer.training import AccuracyMetric, PyTorchBaseModel, run


class Numbers(Dataset):
    """Rows with noise of all three generators."""

    def __init__(self, rows: int) -> None:
        self.rows = torch.arange(rows).float()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.tensor([random.random(), np.random.random(), 0.0, 0.0]) + torch.rand(4)
        x = self.rows[index] % 7 + noise
        return {"x": x, "label": (x.sum() > 16).long()}


class Model(PyTorchBaseModel):
    """Tells whether a row's sum is large; `dies_at` ends the program at that call."""

    dies_at: int | None = None

    def __init__(self, params: dict[str, Any]) -> None:
        size = params["model"]["size"]
        net = torch.nn.Sequential(torch.nn.Linear(4, size), torch.nn.Dropout(0.2), torch.nn.Linear(size, 2))
        self.accuracy = AccuracyMetric("eval/accuracy")
        self.calls = 0
        super().__init__(params, net)

    def __call__(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        logits = self.model(data["x"])
        if not self.model.training:
            self.accuracy.update(data["label"], logits.argmax(-1))
        return torch.nn.functional.cross_entropy(logits, data["label"])

    def build_graph(self, graph: Graph) -> Mapping[str, ir.Value]:
        size = self.params["model"]["size"]
        x = graph.input("x", ir.DataType.FLOAT, ["batch", 4])
        hidden = layers.Linear(None, "0", 4, size)(graph, x)
        return {"logits": layers.Linear(None, "2", size, 2)(graph, hidden)}


def train_data(params: dict[str, Any]) -> DataLoader:
    return DataLoader(Numbers(params["train_input"]["rows"]), params["train_input"]["batch_size"], shuffle=True)


def eval_data(params: dict[str, Any]) -> DataLoader:
    return DataLoader(Numbers(params["eval_input"]["rows"]), 8)


def write(folder: Path, **sections: Any) -> Path:
    """A params file; `None` for a key takes it out."""
    params: dict[str, Any] = {
        "train_input": {"rows": 40, "batch_size": 8},  # epochs of 5 batches
        "eval_input": {"rows": 24},
        "model": {"size": 8},
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": 0.01},
        "runconfig": {"max_steps": 23, "checkpoint_steps": 4, "model_dir": str(folder / "out")},
    }
    for name, changes in sections.items():
        params.setdefault(name, {}).update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return path


def train(path: Path, *flags: str, model: Any = Model, mode: str = "train") -> Any:
    return run(model, train_data, eval_data, arguments=["CPU", "--mode", mode, "--params", str(path), *flags])


def losses(folder: Path) -> str:
    """The table of losses, to the last digit."""
    return (folder / "out" / "train" / "loss.csv").read_text()
