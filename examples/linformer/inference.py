# SPDX-License-Identifier: Apache-2.0
"""Fill in [MASK] with the trained weights, in a graph that onnxruntime runs; PyTorch is not needed."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

import numpy as np
import yaml
from graph import build_graph

from poptransformer.checkpoint import StateDict
from poptransformer.checkpoint.safetensors_file import read_safetensors
from poptransformer.data.word_pieces import CLS, CONTINUES, MASK, SEP, WordPieces
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.program import Program

HERE = Path(__file__).resolve().parent
SENTENCES = ("If an exception occurs, the [MASK] is raised.", "The [MASK] statement defines a function object.")


def trained_params(model_dir: Path) -> dict[str, Any]:
    """Returns the params that a model was trained with, complete."""
    path = model_dir / "train" / "params_train.yaml"
    if not path.is_file():
        path = model_dir / "train_and_eval" / "params_train_and_eval.yaml"
    if not path.is_file():
        raise ConfigError(f"{model_dir} holds no trained model. Train one first, see README.md, or set --model_dir.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def last_checkpoint(model_dir: Path) -> Path:
    """Returns the checkpoint of the highest step."""
    found = sorted(model_dir.glob("checkpoint_*/model.safetensors"), key=lambda path: int(path.parent.name[11:]))
    if not found:
        raise ConfigError(f"{model_dir} has no checkpoint. Train a model first, see README.md, or set --model_dir.")
    return found[-1].parent


def load(checkpoint: Path, model_params: Mapping[str, Any], precision: str) -> Program:
    """Compiles the graph with a checkpoint's weights; packed or padded, as `use_vsl` says."""
    tensors, _ = read_safetensors(checkpoint / "model.safetensors")
    build = functools.partial(build_graph, params=model_params)
    return Program.compile(build, StateDict(tensors, str(checkpoint)), precision=precision)


def pieces_of(text: str, words: WordPieces, max_sequence_length: int) -> list[str]:
    """Returns the word pieces of a sentence that has at least one [MASK].

    Raises:
        ConfigError: it has none, or is too long.
    """
    pieces = [CLS, *words.split(text), SEP]
    if MASK not in pieces:
        raise ConfigError(f"{text!r} has no {MASK}. Write it where a word shall be filled in.")
    if len(pieces) > max_sequence_length:
        raise ConfigError(
            f"{text!r} has {len(pieces)} word pieces with {CLS} and {SEP}, but the model takes {max_sequence_length}. "
            "Shorten it."
        )
    return pieces


def graph_inputs(rows: Sequence[Sequence[int]], mask_id: int, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the graph's inputs for rows of ids: packed with `use_vsl`, otherwise padded with 0."""
    lengths = np.array([len(row) for row in rows], np.int64)
    if params["use_vsl"]:
        ids = np.concatenate([np.asarray(row, np.int64) for row in rows])[None]
        inputs = {"position_ids": np.concatenate([np.arange(n) for n in lengths])[None], "lengths": lengths}
    else:
        is_token = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(is_token.shape, np.int64)
        ids[is_token] = np.concatenate(rows)
        inputs = {"input_mask": is_token.astype(np.int64)}
    inputs |= {"input_ids": ids, "places": np.flatnonzero(ids == mask_id)}
    if params["use_segment_embedding"]:
        inputs["segment_ids"] = np.zeros_like(ids)
    return inputs


def fill(program: Program, texts: Sequence[str], words: WordPieces, params: Mapping[str, Any]) -> list[str]:
    """Returns the texts as word pieces, with the likeliest one in place of each [MASK]."""
    rows = [pieces_of(text, words, params["max_position_embeddings"]) for text in texts]
    ids = [[words.ids[piece] for piece in row] for row in rows]
    logits = program.run(graph_inputs(ids, words.ids[MASK], params))["logits"]
    found = iter(logits.argmax(-1))
    filled = [[words.pieces[next(found)] if piece == MASK else piece for piece in row] for row in rows]
    return [" ".join(row[1:-1]).replace(f" {CONTINUES}", "") for row in filled]


def main() -> None:
    """Reads the command line and prints the sentences."""
    parser = argparse.ArgumentParser(description="Fill in [MASK].")
    parser.add_argument("texts", nargs="*", default=SENTENCES, help="sentences with [MASK] in them")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, bf16, int8, int4 or fp8")
    parser.add_argument("--model_dir", type=Path, default=HERE / "model_dir")
    parser.add_argument("--vocab_file", type=Path, help="vocabulary; that of the training if left out")
    options = parser.parse_args()
    try:
        params = trained_params(options.model_dir)
        model, train = params["model"], params["train_input"]
        vocab_file = options.vocab_file or train["vocab_file"]
        if vocab_file is None:
            raise ConfigError("The model was trained without a vocabulary file. Set --vocab_file.")
        words = WordPieces(vocab_file, train["do_lower"])
        if len(words.pieces) != model["vocab_size"]:
            raise ConfigError(f"{vocab_file} has {len(words.pieces)} pieces, the model {model['vocab_size']}.")
        program = load(last_checkpoint(options.model_dir), model, options.precision)
        print(*fill(program, options.texts, words, model), sep="\n")
    except PopTransformerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
