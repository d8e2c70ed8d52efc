# SPDX-License-Identifier: Apache-2.0
"""Chooses the type that key/value caches are stored in; attention computes in fp32 whatever it is."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from poptransformer.graph import DOMAIN
from poptransformer.state import StateSpec

logger = logging.getLogger(__name__)

_ATTENTION = "CachedAttention"
_FIRST_PAST, _FIRST_PRESENT = 3, 1  # past_key and present_key; the values' follow


def store_caches(model: ir.Model, states: Sequence[StateSpec], dtype: str) -> tuple[StateSpec, ...]:
    """Stores the caches of `CachedAttention` as `dtype`; other states stay as they are. Run it before `fuse`.

    Args:
        model: the model to change.
        states: its states.
        dtype: NumPy name: `float32`; `float16`, half of that; or `uint8`, codes of E4M3FN, a quarter.

    Returns:
        The states as they are now.
    """
    if dtype == "float32":
        return tuple(states)  # as layers declare them
    stored = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    zero = {state.past for state in states if state.initial == 0}
    caches: set[str | None] = set()
    for node in model.graph:
        if (node.domain, node.op_type) != (DOMAIN, _ATTENTION):
            continue
        pasts = node.inputs[_FIRST_PAST : _FIRST_PAST + 2]
        if any(past is None or past.name not in zero or len(past.uses()) != 1 for past in pasts):
            names = ", ".join(str(past and past.name) for past in pasts)
            logger.warning("%s keep 32 bits: other nodes read them too, or they are not empty at first", names)
            continue
        for value in (*pasts, *node.outputs[_FIRST_PRESENT : _FIRST_PRESENT + 2]):
            if value is not None:
                value.type = stored
        caches |= {past.name for past in pasts if past is not None}
        if dtype == "uint8":
            node.attributes["cache_format"] = ir.Attr("cache_format", ir.AttributeType.STRING, "e4m3fn")
    return tuple(dataclasses.replace(state, dtype=dtype) if state.past in caches else state for state in states)
