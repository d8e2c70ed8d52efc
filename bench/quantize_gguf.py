# SPDX-License-Identifier: Apache-2.0
"""Quantizes a GGUF file with llama.cpp's own quantizer; runs where llama-cpp-python is installed.

    python -m bench.quantize_gguf IN.gguf OUT.gguf q8_0|q4_0|q4_0-pure

`q4_0-pure` stores every matrix in Q4_0; plain `q4_0` keeps the head, and so a tied embedding, in more bits.
"""

from __future__ import annotations

import sys


def main() -> int:
    import llama_cpp

    source, target, kind = sys.argv[1:]
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = {
        "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        "q4_0-pure": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    }[kind]
    if kind.endswith("-pure"):
        options.pure = True
        options.token_embedding_type = options.output_tensor_type = llama_cpp.GGML_TYPE_Q4_0
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), options))


if __name__ == "__main__":
    sys.exit(main())
