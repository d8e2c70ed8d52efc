# SPDX-License-Identifier: Apache-2.0
"""ggml's tensor types: their names, and how many elements and bytes a block of each has."""

from __future__ import annotations

# Number -> name, elements, bytes of a block. Source: `GGML_QUANT_SIZES` of the `gguf` package, which is asked for any
# other type. Importing it takes longer than reading the header of a file with a large vocabulary.
COMMON_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


def block_of(kind: int) -> tuple[str, int, int]:
    """Return a type's name, and the elements and bytes of its blocks.

    Args:
        kind: The number that stands for it in files.

    Raises:
        KeyError: If the installed `gguf` package does not know it.
    """
    if kind in COMMON_TYPES:
        return COMMON_TYPES[kind]
    from gguf.constants import GGML_QUANT_SIZES

    names = {int(known): (known.name, *sizes) for known, sizes in GGML_QUANT_SIZES.items()}
    return names[kind]
