# SPDX-License-Identifier: Apache-2.0
"""Continue the alphabet with the trained weights, in a graph that onnxruntime runs; PyTorch is not needed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

import functools

import numpy as np
import yaml
from graph import build_graph

from poptransformer.checkpoint import StateDict
from poptransformer.checkpoint.safetensors_file import read_safetensors
from poptransformer.errors import PopTransformerError
from poptransformer.program import Program

HERE = Path(__file__).resolve().parent


def last_checkpoint(model_dir: Path) -> Path:
    """Returns the checkpoint of the highest step."""
    found = sorted(model_dir.glob("checkpoint_*/model.safetensors"), key=lambda path: int(path.parent.name[11:]))
    if not found:
        raise PopTransformerError(
            f"{model_dir} has no checkpoint. Train first: python run.py CPU --mode train --params configs/params.yaml"
        )
    return found[-1].parent


def load(checkpoint: Path, model_params: dict[str, Any], precision: str) -> Program:
    """Compiles the graph with a checkpoint's weights."""
    tensors, _ = read_safetensors(checkpoint / "model.safetensors")
    build = functools.partial(build_graph, model_params=model_params)
    return Program.compile(build, StateDict(tensors, str(checkpoint)), precision=precision)


def continue_alphabet(program: Program, text: str, letters: int, seq_len: int) -> str:
    """Adds letters one by one, the likeliest each time; the model sees the last `seq_len` ones."""
    ids = [ord(letter) - ord("a") for letter in text]
    for _ in range(letters):
        logits = program.run({"input_ids": np.array([ids[-seq_len:]], np.int64)})["logits"]
        ids.append(int(logits[0, -1].argmax()))
    return "".join(chr(ord("a") + letter) for letter in ids)


def main() -> None:
    """Reads the command line and prints the text."""
    parser = argparse.ArgumentParser(description="Continue the alphabet.")
    parser.add_argument("text", nargs="?", default="abc", help="lower case letters to begin with (default: abc)")
    parser.add_argument("--letters", type=int, default=10, help="letters to add (default: 10)")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, bf16, int8, int4 or fp8")
    parser.add_argument("--params", type=Path, default=HERE / "configs" / "params.yaml")
    parser.add_argument("--model_dir", type=Path, default=HERE / "model_dir")
    options = parser.parse_args()
    if not options.text or set(options.text) - set("abcdefghijklmnopqrstuvwxyz"):
        parser.error(f"text must be letters from a to z, found {options.text!r}")
    model_params = yaml.safe_load(options.params.read_text())["model"]
    try:
        program = load(last_checkpoint(options.model_dir), model_params, options.precision)
    except PopTransformerError as error:
        sys.exit(f"error: {error}")
    print(continue_alphabet(program, options.text, options.letters, model_params["seq_len"]))


if __name__ == "__main__":
    main()
