# SPDX-License-Identifier: Apache-2.0
"""Weights that have a shape and no memory, for building a graph of any size from its config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from poptransformer.checkpoint.checkpoint import Checkpoint
from poptransformer.checkpoint.dtypes import numpy_dtype
from poptransformer.checkpoint.hf_config import HFConfig
from poptransformer.checkpoint.random_weights import RandomStateDict
from poptransformer.checkpoint.state_dict import LazyTensor, StateDict, TensorLike

_STORED = {"float16": "F16", "bfloat16": "BF16"}


class BlankStateDict(RandomStateDict):
    """A state dict that has every weight it is asked for, as zeros that take no memory.

    Args:
        dtype: what the checkpoint stores.
        source: what messages call it.
    """

    def __init__(self, dtype: np.dtype, source: str) -> None:
        super().__init__(0, 0.0, source)
        self._stored_dtype = dtype

    def get_tensor(self, key: str, shape: Sequence[int] | None = None) -> np.ndarray:
        """Return zeros: one element, seen `shape` times.

        Args:
            key: Its name.
            shape: Its shape; a layer that leaves it open gets one element.
        """
        if shape is None and key in self._tensors:
            shape = self._tensors[key].shape
        return np.broadcast_to(np.zeros((), self._stored_dtype), tuple(shape or (1,)))

    def updated(self, tensors: Mapping[str, TensorLike]) -> StateDict:
        """Return blank weights that know the given ones' shapes; their values are not wanted."""
        other = BlankStateDict(self._stored_dtype, self.source)
        other._tensors = {**self._tensors, **{key: LazyTensor.wrap(value) for key, value in tensors.items()}}
        return other

    def __getitem__(self, key: str) -> np.ndarray:
        return self.get_tensor(key)


def blank_checkpoint(config: HFConfig | Mapping[str, Any]) -> Checkpoint:
    """Make a checkpoint without weights and tokenizer.

    Args:
        config: The model's configuration; `torch_dtype` says what the checkpoint stores, fp32 where it is silent.
    """
    hf_config = config if isinstance(config, HFConfig) else HFConfig(config)
    stored = str(hf_config.get("torch_dtype") or hf_config.get("dtype") or "float32")
    dtype = numpy_dtype(_STORED.get(stored, "F32"))
    return Checkpoint(
        hf_config,
        BlankStateDict(dtype, f"blank weights for {hf_config.source}"),
        generation_config={},
        fingerprint="",
        source=hf_config.source,
        load_tokenizer=None,
    )
