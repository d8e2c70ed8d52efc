# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: folders with the weights, which anything can read, and the state of training beside them.

    model_dir/checkpoint_1000/model.safetensors    weights by name
    model_dir/checkpoint_1000/training.pt          optimizer, step, position in the data, generators

A folder appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from poptransformer.checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError, ShapeMismatchError
from poptransformer.checkpoint.files import new_folder
from poptransformer.errors import ConfigError, did_you_mean

WEIGHTS, TRAINING = "model.safetensors", "training.pt"
_NAME = re.compile(r"^checkpoint_(\d+)$")


def checkpoints_of(model_dir: Path) -> list[Path]:
    """Returns the checkpoints of a folder, by step."""
    if not model_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in model_dir.iterdir() if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found) if (path / WEIGHTS).is_file()]


def save_checkpoint(model_dir: Path, step: int, model: nn.Module, training: Mapping[str, Any], keep: int) -> Path:
    """Writes `checkpoint_<step>`, and removes the oldest ones above `keep` (0 keeps all)."""
    folder = model_dir / f"checkpoint_{step}"
    with new_folder(folder) as temporary:
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, str(temporary / WEIGHTS))
        torch.save(dict(training), temporary / TRAINING)
        for name in (WEIGHTS, TRAINING):
            (temporary / name).chmod(0o644)
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
    for old in checkpoints_of(model_dir)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_weights(path: Path, model: nn.Module) -> None:
    """Loads weights into a model.

    Args:
        path: a checkpoint folder, a `.safetensors` file, or a file that `torch.save(model.state_dict())` wrote.
        model: with the same names and shapes.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointNotFoundError(f"There is no checkpoint at {path}. Check --checkpoint_path.")
    try:
        weights = load_file(str(file)) if file.suffix == ".safetensors" else _torch_load(file)
    except SafetensorError as error:
        raise CorruptCheckpointError(f"{file} cannot be read: {error}. Use another checkpoint.") from error
    own = model.state_dict()
    for name in weights:
        if name not in own:
            raise ConfigError(f"{file} holds a weight {name} that the model lacks. {did_you_mean(name, own)}")
    for name, tensor in own.items():
        if name not in weights:
            raise ConfigError(f"{file} lacks the weight {name} of the model. {did_you_mean(name, weights)}")
        if weights[name].shape != tensor.shape:
            raise ShapeMismatchError(name, str(file), list(tensor.shape), list(weights[name].shape))
    model.load_state_dict(weights)


def load_training(folder: Path) -> dict[str, Any]:
    """Reads the state of training that lies beside the weights.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    file = folder / TRAINING
    if not file.is_file():
        raise CheckpointNotFoundError(
            f"{folder} has no {TRAINING} to continue from; use --is_pretrained_checkpoint to take its weights alone."
        )
    return _torch_load(file)


def _torch_load(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)  # nothing in the file is executed
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CorruptCheckpointError(f"{file} cannot be read: {reason}. Use another checkpoint.") from error
    if not isinstance(state, dict):
        raise CorruptCheckpointError(f"{file} holds no weights by name. Use another checkpoint.")
    return state
