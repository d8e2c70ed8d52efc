# SPDX-License-Identifier: Apache-2.0
"""Weights without memory, for graphs that are only planned."""

from __future__ import annotations

import numpy as np
import pytest

from poptransformer.checkpoint import blank_checkpoint

HUGE = [1 << 20, 1 << 20]  # 2 TB in fp16


def test_any_weight_is_there_and_takes_no_memory() -> None:
    weight = blank_checkpoint({"torch_dtype": "float16"}).state_dict.get_tensor("any.weight", HUGE)
    assert list(weight.shape) == HUGE
    assert weight.dtype == np.float16
    assert weight.T.base is not None and weight.strides == (0, 0)


@pytest.mark.parametrize(("stored", "itemsize"), [("float16", 2), ("bfloat16", 2), ("float32", 4), (None, 4)])
def test_the_checkpoints_type(stored: str | None, itemsize: int) -> None:
    weights = blank_checkpoint({"torch_dtype": stored}).state_dict
    assert weights.get_tensor("x", [2]).dtype.itemsize == itemsize


def test_changed_state_dicts_stay_blank() -> None:
    """Models that rewrite their checkpoint's tensors before layers ask for them."""
    weights = blank_checkpoint({}).state_dict.updated({"fixed": np.ones((3, 4), np.float32)}).renamed(str.upper)
    assert weights.get_tensor("other", HUGE).strides == (0, 0)
    assert weights.get_tensor("fixed").shape == (3, 4)
    assert not weights.get_tensor("fixed", [3, 4]).any()
