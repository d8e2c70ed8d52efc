# SPDX-License-Identifier: Apache-2.0
"""Turning ggml's quantized blocks into float32."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from poptransformer.checkpoint.errors import UnsupportedCheckpointError

# Elements per step. The package's temporaries for one step then stay in the second-level cache: 300 to 600
# million elements per second, two to five times what it reaches on a whole tensor.
_STEP_ELEMENTS = 1 << 17


def dequantize(raw: np.ndarray, type_name: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Dequantize one tensor.

    Args:
        raw: Its bytes, `uint8 [..., bytes per row]`.
        type_name: Its ggml type, for example `Q4_1`.
        shape: Its shape.
        path: The file, for error messages.

    Returns:
        `float32 [*shape]`.

    Raises:
        UnsupportedCheckpointError: If the `gguf` package cannot dequantize this type.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize as dequantize_rows

    kind = GGMLQuantizationType[type_name]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = raw.reshape(-1, block_bytes)
    out = np.empty((math.prod(shape) // block, block), np.float32)
    step = max(1, _STEP_ELEMENTS // block)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        try:
            # One long row: the package would split many rows into small groups and join them again.
            out[start : start + step] = dequantize_rows(part.reshape(1, -1), kind).reshape(-1, block)
        except NotImplementedError as error:
            raise UnsupportedCheckpointError(
                f"{path} holds {type_name} tensors, which the gguf package cannot dequantize; "
                "convert the file to another quantization"
            ) from error
    return out.reshape(shape)
