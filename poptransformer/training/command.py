# SPDX-License-Identifier: Apache-2.0
"""`run`: the command line of a model's run.py."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from poptransformer.checkpoint.files import write_text
from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.training.base_model import PyTorchBaseModel
from poptransformer.training.checkpoints import checkpoints_of
from poptransformer.training.inference import compile_only, validate_only
from poptransformer.training.params import MODES, RUNCONFIG, Params, get_params, write_params
from poptransformer.training.randomness import seed_everything
from poptransformer.training.trainer import Trainer
from poptransformer.utils.automatic import DEFAULT_DEVICE
from poptransformer.utils.logging import set_up_logging

logger = logging.getLogger(__name__)

TARGETS = ("CPU", "GPU", "IPU")
# Flags that set a key of `runconfig`.
OVERRIDES = (
    *("model_dir", "checkpoint_path", "is_pretrained_checkpoint", "compile_dir", "logging"),
    *("steps", "max_steps", "eval_steps"),
)

ModelFunction = Callable[[Params], PyTorchBaseModel]
DataFunction = Callable[[Params], Any]


def run(
    model_fn: ModelFunction,
    train_data_fn: DataFunction | None = None,
    eval_data_fn: DataFunction | None = None,
    default_params_fn: Callable[[dict[str, Any]], Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> Any:
    """Trains, evaluates, validates or compiles a model as the command line says.

    A mistake of the user ends the program with one sentence and exit status 1.

    Args:
        model_fn: makes a `PyTorchBaseModel` of the params.
        train_data_fn: makes the data loader of training; needed to train.
        eval_data_fn: makes the data loader of evaluation; needed to evaluate.
        default_params_fn: completes the params, in place or by returning them.
        arguments: the command line; None is `sys.argv`.

    Returns:
        The last loss of training, or the figures of evaluation by checkpoint.
    """
    options = parse(arguments)
    try:
        params = get_params(options.params, options.mode, default_params_fn)
        for name in OVERRIDES:
            value = getattr(options, name)
            if value is not None:
                RUNCONFIG[name][1].check(f"--{name}", value)
                params["runconfig"][name] = value
        with _log_at(params["runconfig"]["logging"]):
            return _run(options, params, model_fn, train_data_fn, eval_data_fn)
    except PopTransformerError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _log_at(level: str) -> Iterator[None]:
    """Sets the level; which weights a graph takes is told at `debug` alone, until the block ends."""
    set_up_logging(level)
    layers = logging.getLogger("poptransformer.layers")
    before = layers.level
    layers.setLevel(before if level.lower() == "debug" else logging.WARNING)
    try:
        yield
    finally:
        layers.setLevel(before)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line, `run.py CPU --mode train --params FILE` or without the target."""
    parser = argparse.ArgumentParser(description="Train, evaluate, validate or compile a model.")
    parser.add_argument(
        "target", nargs="?", type=str.upper, choices=TARGETS, default="CPU", help="where to run (default: CPU)"
    )
    parser.add_argument("-m", "--mode", choices=MODES, required=True, help="what to do")
    parser.add_argument("-p", "--params", required=True, metavar="FILE", help="YAML file of parameters")
    parser.add_argument("-o", "--model_dir", metavar="DIR", help="where checkpoints and results go")
    parser.add_argument("--checkpoint_path", metavar="PATH", help="checkpoint to continue from or to evaluate")
    parser.add_argument(
        "--is_pretrained_checkpoint", action="store_true", default=None, help="take its weights alone, begin at step 0"
    )
    parser.add_argument("-c", "--compile_dir", metavar="DIR", help="where the compiled model goes")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--validate_only", action="store_true", help="check the graph, its kernels and its memory; reads no weights"
    )
    only.add_argument("--compile_only", action="store_true", help="write the compiled graph; runs nothing")
    parser.add_argument("--logging", metavar="LEVEL", help="debug, info, warning or error")
    parser.add_argument("--steps", type=int, metavar="N", help="train N steps from here")
    parser.add_argument("--max_steps", type=int, metavar="N", help="train up to step N")
    parser.add_argument("--eval_steps", type=int, metavar="N", help="evaluate N batches")
    return parser.parse_args(arguments)


def _run(
    options: argparse.Namespace,
    params: Params,
    model_fn: ModelFunction,
    train_data_fn: DataFunction | None,
    eval_data_fn: DataFunction | None,
) -> Any:
    config = params["runconfig"]
    model_dir = Path(config["model_dir"])
    if options.validate_only or options.compile_only:
        if options.target == "IPU" and config["device"] is None:
            config["device"] = DEFAULT_DEVICE
        work = validate_only if options.validate_only else compile_only
        result = work(params, lambda: _model(model_fn, params))
        write_params(params, model_dir, options.mode)
        return result
    device = _device(options.target)
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    seed_everything(config["seed"])
    model = _model(model_fn, params)
    model.model.to(device)
    loaders = _loaders(options.mode, params, train_data_fn, eval_data_fn)
    write_params(params, model_dir, options.mode)
    trainer = Trainer(model, params, device)
    if options.mode in ("train", "train_and_eval"):
        try:
            return trainer.train(*loaders)
        finally:
            if trainer.evaluations:
                _write_results(model_dir / options.mode, trainer.evaluations)
    return _evaluate(trainer, options.mode, model_dir, loaders[0])


def _device(target: str) -> torch.device:
    if target == "IPU":
        raise ConfigError(
            "Training and evaluation run on CPU or GPU. For an IPU, use --validate_only or --compile_only."
        )
    if target == "GPU" and not torch.cuda.is_available():
        raise ConfigError("torch finds no GPU here. Use CPU, or install a torch with CUDA.")
    return torch.device("cuda" if target == "GPU" else "cpu")


def _model(model_fn: ModelFunction, params: Params) -> PyTorchBaseModel:
    model = model_fn(params)
    if not isinstance(model, PyTorchBaseModel):
        raise ConfigError(f"model_fn returned {type(model).__name__}; expected a PyTorchBaseModel.")
    params["model"].get("mixed_precision")  # a key of the workflow, not of the model
    params["model"].check_all_read()
    return model


def _loaders(
    mode: str, params: Params, train_data_fn: DataFunction | None, eval_data_fn: DataFunction | None
) -> list[Any]:
    """The data loaders that a mode needs, each made after the same seed."""
    wanted = {"train": [("train", train_data_fn)], "train_and_eval": [("train", train_data_fn), ("eval", eval_data_fn)]}
    loaders = []
    for name, function in wanted.get(mode, [("eval", eval_data_fn)]):
        if function is None:
            raise ConfigError(f"--mode {mode} needs {name}_data_fn; pass it to run().")
        seed_everything(params["runconfig"]["seed"])
        loaders.append(function(params))
        params[f"{name}_input"].check_all_read()
    return loaders


def _evaluate(trainer: Trainer, mode: str, model_dir: Path, loader: Any) -> dict[str, Mapping[str, float]]:
    named = trainer.runconfig["checkpoint_path"]
    checkpoints: list[Path | None] = [Path(named).expanduser() if named else None]
    if mode == "eval_all":
        checkpoints = list(checkpoints_of(model_dir))
        if not checkpoints:
            raise ConfigError(f"{model_dir} has no checkpoints to evaluate; train first.")
    results: dict[str, Mapping[str, float]] = {}
    for checkpoint in checkpoints:
        trainer.load(checkpoint)
        results[f"step {trainer.step}"] = trainer.evaluate(loader)
    _write_results(model_dir / mode, results)
    for step, figures in results.items():
        print(f"{step}:", ", ".join(f"{name} {value:.5f}" for name, value in figures.items()))
    return results


def _write_results(folder: Path, results: Mapping[str, Mapping[str, float]]) -> None:
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
